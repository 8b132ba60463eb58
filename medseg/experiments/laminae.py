# %% [markdown]
# # The missing laminae
#
# **Question.** The note's best model made bodies, discs and spinous processes but no laminae (row
# B37), and its author suspected that the MR did not show them (row B38). Which parts of the bone
# can be read out of a measured CT, of a CT made from an MR that shows the laminae, and of a CT
# made from an MR that does not?
#
# **Prediction, before any run.** From an MR without laminae there are none in the bone, bodies
# being as they were: the symptom of B37. From an MR that shows them a short training finds some,
# fewer than of the bodies: laminae are thin. So the symptom alone does not tell the cause; only
# looking at the MR does.
#
# Translators can be named. Without, each seed trains two that differ in one thing: one learns from
# CTs of whole people, one from CTs of people without laminae, as after a laminectomy.
# **Prediction.** The second loses the laminae of everybody and keeps the bodies: the symptom of
# B37 again, though the MR shows all. By default these trainings take seconds: a smoke run, which
# proves that the path is whole and nothing else.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
# data
people = 1  # phantoms to look at
first = 1000  # number of the first
anatomy = 0  # seed of the phantoms
extent_mm = "78,96,66"  # of the phantoms, along x, y, z
scan_mm = 3.0  # voxel size of the scans

# translators
models = ""  # .safetensors files with commas between; "" trains two for each seed
width = 4  # of the generator and the discriminator

# training, if there is any
seeds = "0"
train = 1  # people with an MR to train on, and as many others with a CT
train_mm = 6.0  # voxel size
patch = "8,8,8"  # voxels along x, y, z
steps = 2  # of each training

# run
name = ""  # of the run, free text; its page is titled by what it is
threads = 1  # CPU threads; 0 leaves the setting
note = ""  # a sentence for the page
out = ""  # folder of the run; "" makes runs/laminae-<time>

# %%
from functools import cache
from pathlib import Path

import numpy as np
import torch

from medseg.bone.parts import part_report, part_sentence, visibility
from medseg.bone.threshold import bone_mask, patient_mask
from medseg.data.unpaired import PatchSampling, unpaired_batches
from medseg.data.scans import make_scan, on_grid
from medseg.io.files import digest
from medseg.io.resample import resample_to
from medseg.phantoms.spine_scanner import spine_ct, spine_mr
from medseg.phantoms.vertebra import PIECES, SPINE

# %%
from medseg.runs.folder import finish_run
from medseg.runs.page import show_run
from medseg.runs.parameters import PHANTOMS, begin_run, frozen, numbers, words
from medseg.runs.pictures import Tile, share_figure, tile_figure
from medseg.train.statistics import all_pair_questions, group_intervals, answer_questions
from medseg.translate.predict import TranslateRecipe, load_translator
from medseg.translate.predict import save_translator, translate_scan
from medseg.translate.settings import Settings
from medseg.translate.step import CycleGAN, fit_cyclegan

# %% [markdown]
# ## Config

# %%
config = frozen(globals())
if min(config.people, config.train, config.steps) < 1:
    found = f"{config.people}, {config.train} and {config.steps}"
    raise ValueError(f"people, train and steps must be at least 1, got {found}")
every_seed = numbers(config.seeds, int)
extent, draw = numbers(config.extent_mm), PatchSampling(numbers(config.patch, int))
WINDOW = (-300.0, 900.0)  # HU that become -1 and 1
run = begin_run("laminae", config)
if config.threads:
    torch.set_num_threads(config.threads)


# %% [markdown]
# ## Run
#
# A training sees the MRs of some people and the CTs of others, who have laminae or not.


# %%
def scan_of(make, person, mm, laminae=True):
    at = (mm,) * 3
    return make(person, config.anatomy, spacing=at, extent_mm=extent, laminae=laminae)


def sides(laminae):
    mm, count = config.train_mm, config.train
    mr, ct = [], []
    for k in range(count):
        image = scan_of(spine_mr, k, mm).image
        mr.append(make_scan(str(k), image, "MR", mm, WINDOW))
    for k in range(count, 2 * count):
        image = scan_of(spine_ct, k, mm, laminae).image
        ct.append(make_scan(str(k), image, "CT", mm, WINDOW))
    return mr, ct


# %%
def settings_of(seed):
    return Settings(
        "resnet2",
        config.width,
        disc_width=config.width,
        disc_layers=2,
        adversarial=3.0,
        identity=2.0,
        gradient=2.0,
        lr=0.001,
        lr_disc=0.0002,
        decay_from=0.5,
        ema=0.98,
        steps=config.steps,
        spacing=(config.train_mm,) * 3,
        seed=seed,
    )


# %%
recipe = TranslateRecipe(
    "resnet2", config.width, patch=draw.size, spacing_mm=config.train_mm, ct_range=WINDOW
)

# %%
files = {Path(file): ("", None) for file in words(config.models)}
trainings = [] if files else [(word, s) for word in ("with", "without") for s in every_seed]
lessons = {word: sides(word == "with") for word in dict.fromkeys(w for w, _ in trainings)}
updates = config.steps * len(trainings)
for n, (word, seed) in enumerate(trainings):
    model = CycleGAN(settings_of(seed))
    batches = unpaired_batches(*lessons[word], draw, config.steps)
    about = dict(steps=updates, laminae=word == "with", seed=seed)
    for row in fit_cyclegan(model, batches):
        step = config.steps * n + row["step"] + 1
        run.row("train", row | dict(step=step) | about)
    file = run.folder / f"{word}_laminae_{seed}.safetensors"
    save_translator(file, model.translator(), recipe, dict(run=config.name, seed=seed))
    files[file] = f", taught by CTs {word} laminae", seed

# %% [markdown]
# Each person has a CT, an MR, and an MR as it would be without laminae. All bone is judged against
# the true parts of the whole person.

# %%
who = range(config.first, config.first + config.people)
cts = {k: scan_of(spine_ct, k, config.scan_mm) for k in who}
shows = {k: scan_of(spine_mr, k, config.scan_mm) for k in who}
lacks = {k: scan_of(spine_mr, k, config.scan_mm, laminae=False) for k in who}
inputs = {"MR with laminae": shows, "MR without": lacks}
body = {k: patient_mask(scan.image) for k, scan in cts.items()}


@cache
def seen(kind, k, part):
    return visibility(inputs[kind][k].image, cts[k].labels, part)["visible"]


@cache
def coarse(k, mm):
    "The bone of a measured CT on voxels as coarse as a translator's."
    image = cts[k].image
    return bone_mask(resample_to(on_grid(image, mm), image), body=body[k])[0]


# %% [markdown]
# A translator works on coarse voxels, and on those a thin lamina is partly lost in a measured CT
# too. So there are four ways to bone: the measured CT, the measured CT on the translator's voxels,
# and the two made CTs, which are set against the second.


# %%
def part_rows(mask, k, about, like=None, kind=None):
    "A row for each part, with the sentence of the report; `kind` is the MR that was translated."
    scan = cts[k]
    report = part_report(mask, scan.labels, None, scan.facts["levels"], like)
    for part, found in report["parts"].items():
        asked = kind and part == "lamina" and found["state"] != "found"
        shown = seen(kind, k, part) if asked else None
        yield about | dict(
            part=part,
            recall=found["recall"],
            best=found["best"],
            state=found["state"],
            seen=shown,
            false_share=report["false_share"],
            says=part_sentence(part, found["state"], found["recall"], shown),
        )


# %%
def about_of(way, k, translator="", seed=None):
    return dict(bone_of=way, subject=k, translator=translator, seed=seed)


# %%
table, made = [], {}
for k in who:
    measured = bone_mask(cts[k].image, body=body[k])[0]
    table += part_rows(measured, k, about_of("measured CT", k))
    for n, (file, (by, seed)) in enumerate(files.items()):
        net, used = load_translator(file)
        best = coarse(k, used.spacing_mm)
        if n == 0:
            size = " × ".join(f"{mm:g}" for mm in np.atleast_1d(used.spacing_mm))
            table += part_rows(best, k, about_of(f"measured CT, {size} mm", k))
        for kind, scans in inputs.items():
            fake = made[kind, k, n] = translate_scan(net, used, scans[k].image)[0]
            mask = bone_mask(fake, body=body[k])[0]
            about = about_of(f"CT made of {kind}{by}", k, file.stem, seed)
            table += part_rows(mask, k, about, best, kind)
for row in table:
    run.row("part", row)

# %% [markdown]
# ## Artefacts

# %%
ways = list(dict.fromkeys(row["bone_of"] for row in table))
mean, false = {}, {}
for way in ways:
    mine = [row for row in table if row["bone_of"] == way]
    false[way] = float(np.mean([row["false_share"] for row in mine]))
    recalls = {part: [r["recall"] for r in mine if r["part"] == part] for part in PIECES}
    mean[way] = {part: float(np.mean(values)) for part, values in recalls.items()}
run.figure(
    share_figure(mean, "recall"),
    "recall",
    f"The share of each part of the true bone that is read out, {len(who)} phantoms, {len(files)}"
    " translators.",
)

# %%
k = who[0]
laminae = cts[k].labels.voxels == SPINE["lamina"]
z = int(laminae.sum((0, 1)).argmax())
shown = {
    "measured CT": cts[k].image,
    "MR with laminae": shows[k].image,
    "CT made of it": made["MR with laminae", k, 0],
    "MR without": lacks[k].image,
    "CT made of that": made["MR without", k, 0],
}
tiles = []
for label, scan in shown.items():
    span = None if label.startswith("MR") else (-200, 600)
    tiles.append(Tile(scan.voxels[:, :, z], label, span, laminae[:, :, z]))
caption = f"Phantom {k}, cut across a vertebra; the true laminae are outlined."
run.figure(tile_figure([tiles]), "cuts", caption)

# %% [markdown]
# Where laminae are missing, does the MR show them? And what does taking them out of the MR change?

# %%
lamina = [row for row in table if row["part"] == "lamina" and row["translator"]]
lost = [row for row in lamina if row["state"] == "missing"]
counts = {}
for way in ways:
    if "made" in way:
        some, every = (sum(r["bone_of"] == way for r in rows) for rows in (lost, lamina))
        counts[way] = f"{some} of {every}"
although = sum(bool(row["seen"]) for row in lost)
because = sum(row["seen"] is False for row in lost)
blame = (
    f"laminae missing from {len(lost)} of {len(lamina)} made CTs: {although} although the MR shows"
    f" them, {because} because it does not"
)

# %%
recall = {}
for row in lamina:
    kind = "shows" if row["bone_of"].startswith("CT made of MR with laminae") else "lacks"
    recall[kind, row["subject"], row["translator"]] = row["recall"]
pairs = [(value, recall["lacks", *rest]) for (k, *rest), value in recall.items() if k == "shows"]
changes = [after - before for before, after in pairs]
effect = (
    "taking the laminae out of the MR changes their recall by"
    f" {np.mean(changes):+.2f} on average, {min(changes):+.2f} to {max(changes):+.2f} over"
    f" {len(pairs)} pairs"
)

# %%
notes = [PHANTOMS]
for way, found in mean.items():
    parts = ", ".join(f"{part} {value:.2f}" for part, value in found.items())
    notes.append(f"{way}: {parts}; {false[way]:.0%} of the mask is no bone")
notes += [blame, effect]
headline = {f"lamina recall, {way}": round(found["lamina"], 3) for way, found in mean.items()}
headline |= {f"laminae missing, {way}": count for way, count in counts.items()}

# %% [markdown]
# What the CTs that a translator learned from do to the parts that it makes.

# %%
taught, questions = {}, []
for part in ("lamina", "body") if trainings else ():
    rows = [row for row in table if row["part"] == part]
    taught[part] = [
        row | dict(taught=row["bone_of"].partition("taught by ")[2])
        for row in rows
        if row["bone_of"].startswith("CT made of MR with laminae")
    ]
    questions += all_pair_questions(taught[part], "taught", "recall", part=part)
answers = answer_questions(questions)
for answer in answers:
    run.row("answer", answer)

# %%
for part, rows in taught.items():
    mine = [answer for answer in answers if answer["part"] == part]
    says, ranges = "; ".join(answer["says"] for answer in mine), []
    for by, (low, middle, high) in group_intervals(rows, "taught", "recall").items():
        ranges.append(f"{by} {low:.2f} to {high:.2f} around {middle:.2f}")
    headline[f"recall of the {part}, by the CTs that taught"] = mine[0]["word"]
    notes.append(
        f"Recall of the {part} in a CT made of an MR that shows the laminae, {config.steps} updates"
        f" each: {says} ({'; '.join(ranges)})."
    )
told = notes[1:]
if config.note:
    notes.append(config.note)

# %%
finish_run(
    run,
    headline=headline,
    table=table,
    cost=dict(updates=updates, trainings=len(trainings)),
    data="phantom",
    data_digest=digest(*files),
    notes=notes,
)

# %% [markdown]
# ## Conclusion
#
# What came is in the record, not typed here.

# %%
print(*told, sep="\n")
for row in table:
    if row["part"] == "lamina":
        print(f"{row['bone_of']} {row['translator']}: {row['says']}")

# %%
show_run(run)
