# %% [markdown]
# # All the same
#
# **Question.** The spine note saw four trainings: with the updated U-Net all 15 test results were
# one volume (B33, B34), with batch 16 they looked alike (B35, B36), with gradient consistency
# alike and worse (B39, B40), with spectral norm they could be told apart and paired with their MR
# (B42, B43). Do short trainings on phantoms with the same settings show this? And what does show
# it?
#
# **Prediction, before any run.** The note's test folder held one person and varieties of that
# person: it alone gives 15 results that are one volume, from any translator. On different people
# no setting of the four gives one volume. The stored form of gradient consistency changes nothing
# at all, since no gradient leads from it.
#
# The four runs in small: whole volumes, the note's networks, batches and weights, three people
# with a CT, turns and noise as augmentation; and updates as the note's runs had them, 4 : 1 : 2 :
# 8. Then the same first run broken in three ways, networks before their first update, and three
# translators that are no network. Each translates six people, 15 noisy varieties of one of them,
# and 15 turned ones.
#
# The default is a smoke run of seconds, which proves that the path is whole and nothing else.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
# data
people_mr = 2  # phantoms to train on
people_ct = 2  # the note had three
testers = 4  # phantoms to test on; their CT is hidden from training
varieties = 4  # of one person, in each of two folders
anatomy = 0  # seed of the phantoms: another one makes other people
extent_mm = "60,60,60"  # of the phantoms, along x, y, z
spacing_mm = 6.0  # voxel size
ct_range = "-300,900"  # HU that become -1 and 1

# draws
patch = 10  # voxels a side
turn_sd = 10.0  # degrees, of the augmentation
noise_sd = 0.05  # in ranges of the scan
full_batches = False  # batches of 16 and 8 as in the note; else 2 in their place

# network
width = 2
disc_width = 2
disc_layers = 1

# training
seeds = "0"
updates = 1  # of the run with batch 16; the others have 2, 4 and 8 times as many
lr = 0.002
lr_disc = 0.0004

# run
name = ""  # of the run, free text; its page is titled by what it is
threads = 1  # CPU threads; 0 leaves the setting
note = ""  # a sentence for the page
resume = False  # go on in the folder of a stopped run
out = ""  # folder of the run; "" makes runs/symptoms-<time>

# %%
import numpy as np
import torch

from medseg.collapse.coverage import effective_subjects
from medseg.collapse.spinal_axis import curvature_agreement
from medseg.data.manifest import data_digest, read_manifest
from medseg.data.split import split_items
from medseg.data.spine_cohort import make_spine_cohort
from medseg.data.unpaired import PatchSampling, sample_patch, make_patch
from medseg.data.scans import load_sides, make_scan
from medseg.data.unpaired import unpaired_batches
from medseg.data.scans import unscale_ct
from medseg.io.files import write_json
from medseg.io.volume import Volume

# %%
from medseg.runs.folder import finish_run, read_json
from medseg.runs.page import show_run
from medseg.runs.paired_comparison import (
    TrainingPlan,
    TestSubject,
    all_alike,
    changed_settings,
    evaluate_translator,
)
from medseg.runs.paired_comparison import read_test_subjects, identity_scores
from medseg.runs.parameters import begin_run, frozen, numbers
from medseg.runs.pictures import Tile, seed_figure, tile_figure
from medseg.runs.symptoms import FOLDERS, Marks, broken, cause, error_questions, folder_alone
from medseg.runs.symptoms import observed, paired, span, spectral_best, spectral_pairs, stored_form
from medseg.train.statistics import answer_questions
from medseg.translate.gradient_audit import InertLoss
from medseg.translate.predict import load_translator, save_translator
from medseg.translate.settings import Settings
from medseg.translate.step import CycleGAN, fit_cyclegan

# %% [markdown]
# ## Config

# %%
config = frozen(globals())
every_seed, window = numbers(config.seeds, int), numbers(config.ct_range)


def check(config):
    few = min(config.testers, config.varieties) < 4
    if few or config.updates < 1 or len(set(every_seed)) < len(every_seed):
        found = f"{config.testers}, {config.varieties}, {config.updates} and {config.seeds!r}"
        raise ValueError(
            "testers and varieties must be 4 or more, since no fewer can be paired beyond chance,"
            f" updates 1 or more, and seeds must differ, got {found}"
        )


check(config)

# %% [markdown]
# The note's runs are one plan with a few things changed.

# %%
at, size = (config.spacing_mm,) * 3, (config.patch,) * 3
base = TrainingPlan(
    Settings(
        "unet_updated",
        config.width,
        disc_width=config.disc_width,
        disc_layers=config.disc_layers,
        steps=4 * config.updates,
        lr=config.lr,
        lr_disc=config.lr_disc,
        decay_from=1.0,
        ema=0.9,
        spacing=at,
    ),
    PatchSampling(size, 2, turn_sd=config.turn_sd, noise_sd=config.noise_sd),
)

# %%
large, half = (16, 8) if config.full_batches else (2, 2)
one, two, eight = config.updates, 2 * config.updates, 8 * config.updates
old = base.but(generator="unet_old")
without = old.but(batch=half, cycle=3.0, steps=two, one_backward=True)
plans = {
    "B33": base,
    "B35": old.but(batch=large, steps=one),
    "B39 stored": without.but(gradient=1.0, signed=True),
    "B39 without the loss": without,
    "B39 working, signed": without.but(gradient=1.0, signed=True),
    "B39 working, unsigned": without.but(gradient=1.0),
    "B42": base.but(spectral=True, disc_spectral=True, steps=eight),
}
NOTE, UNTRAINED = ("B33", "B35", "B39 stored", "B42"), ("B33", "B35", "B42")

# %% [markdown]
# And the first of them, broken in three ways.

# %%
loose, strong = dict(cycle=0.0, identity=0.0), dict(lr_disc=10 * config.lr_disc, adversarial=10.0)
BROKEN = {
    "no cycle, no identity": base.but(**loose),
    "strong discriminator": base.but(**strong),
    "both": base.but(**loose, **strong),
}
plans |= BROKEN
run = begin_run("symptoms", config)

# %% [markdown]
# ## Three folders to be tested on
#
# Different people; one person with noise as the note added it (mean within ± 0.1, spread 0.01,
# 0.05 or 0.1 of the range); the same person turned by angles from N(0, 10°).

# %%
cohort = run.folder / "cohort" / "manifest.csv"
if not cohort.exists():
    counts = config.people_mr, config.people_ct, config.testers, config.anatomy
    make_spine_cohort(cohort.parent, *counts, at, at, numbers(config.extent_mm), "t2", workers=1)
train, _ = split_items(read_manifest(cohort), seed=0)
mr, ct = load_sides(train, config.spacing_mm, window)
people = read_test_subjects(cohort)


# %%
def varied(person, how):
    "The person's scans, changed in so many ways; the CT is turned but gets no noise."
    scan = make_scan(person.name, person.mr, "MR")
    truth = make_scan(person.name, person.ct, "CT", ct_range=window)
    found = []
    for k in range(config.varieties):
        record = sample_patch([scan], how, np.random.default_rng((config.anatomy, k)))
        quiet = record | dict(mean=0.0, sd=0.0, stretch=None)
        image = Volume(make_patch(scan, record), person.mr.affine)
        answer = unscale_ct(make_patch(truth, quiet), window)
        found.append(TestSubject(f"{person.name}_{k}", image, Volume(answer, person.ct.affine)))
    return found


# %%
whole = people[0].mr.shape
noise = PatchSampling(whole, noise_sd=(0.01, 0.05, 0.1), noise_mean=0.1, flip=False)
turns = PatchSampling(whole, turn_sd=10.0, flip=False)
folders = dict(people=people, noisy=varied(people[0], noise), turned=varied(people[0], turns))
for where, part in folders.items():
    subjects = effective_subjects([t.mr.voxels for t in part], people[0].mr.spacing)["subjects"]
    run.row("folder", dict(folder=where, files=len(part), subjects=subjects))
    print(f"{where}: {len(part)} files of {subjects} people, as the audit of a test folder sees it")


# %% [markdown]
# ## Run
#
# Two CTs are told apart by eye by their HU, so the mean difference of two made CTs is held against
# that of two true ones. It is needed: the count of effective volumes evens out contrast, and takes
# faint differences for full ones.


# %%
def apart(cts):
    "Mean difference of two CTs, HU, within the range that the networks can give."
    seen = [np.clip(v.voxels.astype(float), *window) for v in cts]
    return float(np.mean([np.abs(a - b).mean() for i, a in enumerate(seen) for b in seen[:i]]))


def bends(part, made):
    "Whether the made CTs are bent as their MRs are; 1 if all are."
    inputs = [t.mr.voxels.astype(float) for t in part]
    outputs = [v.voxels.astype(float) for v in made]
    return curvature_agreement(inputs, outputs, part[0].mr.spacing)


def mark(about, where, made, same):
    "A row for one folder."
    part = folders[where]
    bent = bends(part, made) if where == "people" else None
    told = dict(folder=where, files=len(part), apart_hu=apart(made), bends=bent)
    return about | same | told


# %%
SAME = ("pairing", "chance", "p", "effective", "effective_mr", "diversity_ratio")


def marks_of(label, about, net, plan):
    "A row for each folder."
    found = []
    for where, part in folders.items():
        rows, made = evaluate_translator(net, plan.recipe(window), part)
        row = mark(dict(label=label) | about, where, made, {key: rows[0][key] for key in SAME})
        row |= dict(mae_hu=None, of_each={})
        if where == "people":
            row["of_each"] = {r["subject"]: r["mae_hu"] for r in rows}
            row["mae_hu"] = float(np.mean(list(row["of_each"].values())))
        found.append(row)
    return found


# %% [markdown]
# The stored form of gradient consistency has a value and no gradient. The audit of the training
# stops it by name; to see what it did, it is trained without the audit. Each training of the first
# seed is audited in its first steps.


# %%
def as_stored(model):
    "The model with gradient consistency as the note's code had it: cut off from the generator."
    every_term = model.terms.of_fake

    def cut_off(term):
        return lambda: term().detach()

    def of_fake(*told):
        terms = every_term(*told)
        return {k: cut_off(t) if k.startswith("gradient") else t for k, t in terms.items()}

    model.terms.of_fake = of_fake
    return model


# %%
if config.threads:
    torch.set_num_threads(config.threads)
plan, said = plans["B39 stored"], ""
try:
    next(fit_cyclegan(as_stored(CycleGAN(plan.settings)), unpaired_batches(mr, ct, plan.draw, 1)))
except InertLoss as e:
    said = str(e)
print("the audit says:", said)


# %%
def kept(label, seed, end="json"):
    name = label.replace(" ", "_").replace(",", "")
    return run.folder / "trainings" / f"{name}_{seed}.{end}"


first = every_seed[0]
jobs = [(label, seed) for seed in every_seed for label in plans]
steps = {job: plans[job[0]].settings.steps for job in jobs}
total = sum(steps.values())
if config.resume:
    run.rewind(sum(steps[job] for job in jobs if kept(*job).exists()))


def diary(row, label, seed, before):
    cycles = sum(value for key, value in row.items() if key.startswith("cycle"))
    loss = cycles or row["adversarial_ct"]
    step = before + row["step"]
    run.row("train", dict(label=label, seed=seed, step=step, steps=total, loss=loss))


# %%
def training(label, seed, before):
    plan, stored = plans[label].but(seed=seed), label == "B39 stored"
    model, found = CycleGAN(plan.settings), []
    if stored:
        as_stored(model)
    if label in UNTRAINED:
        found += marks_of(label, dict(seed=seed, step=0), model.translator(), plan)
    batches = unpaired_batches(mr, ct, plan.draw, plan.settings.steps)
    looks = {config.updates, 4 * config.updates, plan.settings.steps}
    for row in fit_cyclegan(model, batches, check=seed == first and not stored):
        diary(row, label, seed, before)
        if model.done in looks:
            found += marks_of(label, dict(seed=seed, step=model.done), model.translator(), plan)
    about = dict(label=label, seed=seed, step=model.done)
    file = kept(label, seed, "safetensors")
    save_translator(file, model.translator(), plan.recipe(window), about)
    write_json(kept(label, seed), found)


# %%
before = 0
for job in jobs:
    if not kept(*job).exists():
        training(*job, before)
    before += steps[job]
table = [row for job in jobs for row in read_json(kept(*job))]


# %% [markdown]
# Three translators that are no network: one gives every MR the mean of the training CTs, one
# passes the MR on, and one, the healthiest there could be, gives the true CT. They show what the
# numbers can tell.


# %%
class Constant(torch.nn.Module):
    "One answer for every MR."

    def __init__(self, answer):
        super().__init__()
        self.answer = torch.from_numpy(answer)

    def forward(self, x):
        return self.answer[None, None].expand_as(x).clone()


still = PatchSampling(whole, flip=False)
drawn = [sample_patch([scan], still, np.random.default_rng(0)) for scan in ct]
mean_ct = np.mean([make_patch(scan, record) for scan, record in zip(ct, drawn)], 0)
controls = {"one CT for all": Constant(mean_ct), "MR passed on": torch.nn.Identity()}
for label, net in controls.items():
    table += marks_of(label, dict(seed=0, step=0), net, base.but(size=whole))

# %%
TRUE = "the true CT"
for where, part in folders.items():
    cts = [t.ct for t in part]
    about = dict(label=TRUE, seed=0, step=0)
    row = mark(about, where, cts, identity_scores(part, cts, window))
    row["mae_hu"] = 0.0 if where == "people" else None
    table.append(row)
full = apart([t.ct for t in people])
for row in table:
    row["share"] = row["apart_hu"] / full
    run.row("marks", row)
marks = Marks(table, config.testers, config.varieties, config.updates)

# %%
for label in [*plans, *controls, TRUE]:
    told = []
    for where in FOLDERS:
        rows = marks.at(label, where)
        told.append(
            f"{where}: {span(rows, 'effective')} volumes, {span(rows, 'share', 2)} as far apart as"
            f" true CTs, pairing {span(rows, 'pairing', 2)}"
        )
    print(f"{label:24}", "; ".join(told))

# %% [markdown]
# ## What became of the note's observations
#
# The made CTs are alike if they are fewer than two effective volumes, or not a quarter as far
# apart as the true CTs of different people (a line drawn by eye, after the first trainings had
# been seen); and they can be paired with their MR if that goes better than by chance (p below
# 0.01); from every seed. That all are alike is *confirmed* if it comes out of every seed on files
# whose true CTs are not alike: on one person's varieties the right answer shows the symptom too,
# so there it proves nothing. Another observation is *confirmed* if its symptom comes out of every
# seed. Any is *refuted* if the opposite is proven, and *unresolved* if the small form does not
# show it or luck may do it: a short training on phantoms cannot take back what was seen.


# %%
def same_weights(one, two, seed):
    nets = [load_translator(kept(label, seed, "safetensors"))[0] for label in (one, two)]
    return all(torch.equal(a, b) for a, b in zip(*(net.parameters() for net in nets)))


asked = [
    error_questions(marks, "B39 without the loss", "B39 working, signed", two),
    error_questions(marks, "B39 without the loss", "B39 working, unsigned", two),
    error_questions(marks, "B33", "B42", 4 * config.updates),
]
answers = iter(answer_questions([question for questions, _ in asked for question in questions]))
told = [([next(answers) for _ in questions], errors) for questions, errors in asked]
equal = [same_weights("B39 stored", "B39 without the loss", seed) for seed in every_seed]

# %%
verdicts = [
    observed(marks, "B34", "updated U-Net, batch 2: all 15 test outputs are one volume", "B33"),
    observed(marks, "B36", "old U-Net, batch 16: outputs look alike", "B35"),
    observed(marks, "B40", "gradient consistency, cycle 3, batch 8: no diversity", "B39 stored"),
    stored_form(equal, told[:2]),
    spectral_pairs(marks),
    spectral_best(marks, *told[2]),
]
causes = [folder_alone(marks)]
causes += [broken(marks, label) for label in BROKEN]
causes += [cause(marks, label, label) for label in controls]
causes += [cause(marks, f"{label} before its first update", label, 0) for label in UNTRAINED]
for verdict in verdicts + causes:
    run.row("verdict", verdict)
    claim = f"{verdict['row']}: {verdict['claim']}: {verdict['status']}"
    print(f"{claim}. {verdict['why']} {verdict['number']}.")

# %% [markdown]
# ## Artefacts

# %%
few, middle = min(4, config.testers, config.varieties), whole[0] // 2
rows = [[] for _ in range(1 + len(NOTE))]
for where, word in (("people", "person"), ("noisy", "noise")):
    part = folders[where][:few]
    rows[0] += [Tile(t.mr.voxels[middle], f"{word} {k}") for k, t in enumerate(part, 1)]
    for row, label in zip(rows[1:], NOTE):
        net, recipe = load_translator(kept(label, first, "safetensors"))
        _, made = evaluate_translator(net, recipe, part)
        row += [Tile(v.voxels[middle], window=window) for v in made]
run.figure(
    tile_figure(rows, ("MR", *NOTE), inches=1.25),
    f"folders_seed_{first}",
    "Left different people, right noisy varieties of one of them; below each MR what the four"
    f" trainings make of it, seed {first}. Phantoms.",
)

# %%
words = dict(
    people=f"{config.testers} people",
    noisy=f"{config.varieties} noisy files of one",
    turned=f"{config.varieties} turned files of one",
)
counted = dict(
    effective="effective volumes among the made CTs", share="how far apart, as a share of true CTs"
)
panels, units, where_of = {}, {}, {}
for key, unit in counted.items():
    for where, word in words.items():
        title = word if key == "effective" else f"{word}, apart"
        units[title], where_of[title] = unit, where
        panels[title] = {}
        for label in [*plans, *controls, TRUE]:
            panels[title][label] = [row[key] for row in marks.at(label, where)]


# %%
def color(title, label):
    rows = marks.at(label, where_of[title])
    if all_alike(rows):
        return "tab:red"
    return "tab:green" if paired(rows) else "tab:orange"


run.figure(
    seed_figure(panels, color, units),
    "effective",
    "How many volumes the made CTs are, and how far apart, a dot for each seed. Red: all alike."
    " Orange: not alike, but not to be paired with their MR. Green: paired. Phantoms.",
)

# %%
proven = [v for v in causes if v["symptom"] == "yes" and v["status"] == "confirmed"]
reproduced = "; ".join(verdict["claim"] for verdict in proven) or "nothing"
headline = {f"{v['row']}: {v['claim']}": v["status"] for v in verdicts}
headline["outputs that are all alike come from every seed with"] = reproduced
differ = changed_settings(plans["B35"], plans["B39 stored"].but(one_backward=False))
notes = [
    "All scans are phantoms and all trainings short: nothing here is a claim about patients.",
    f"The audit of losses says of the stored form: {said}",
    (
        f"Things that differ between B35 and B39 as the note ran them: {', '.join(differ)}; no"
        " single cause can be named."
    ),
]
if len(every_seed) < 3:
    notes.append(f"{len(every_seed)} seeds are fewer than 3: no two models are compared.")
if config.note:
    notes.append(config.note)

# %%
finish_run(
    run,
    headline=headline,
    table=verdicts + causes,
    cost=dict(updates=total, trainings=len(jobs)),
    data="phantom",
    data_digest=data_digest(read_manifest(cohort)),
    notes=notes,
)

# %% [markdown]
# ## Conclusion
#
# What came is in the record, not typed here. What the small form does not show is not thereby
# refuted: the note's volumes were real, larger and trained on for days.

# %%
print(f"{run.folder}:", "; ".join(f"{key}: {value}" for key, value in headline.items()))

# %%
show_run(run)
