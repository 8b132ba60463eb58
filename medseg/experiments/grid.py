# %% [markdown]
# # What each factor does
#
# **Question.** The spine note found its run with gradient consistency worse and blamed the cycle
# weight of 3. That run differed in its batch too. With all of them set free of each other, what
# does gradient consistency do, what the cycle weight, what the batch?
#
# **Prediction, before any run.** In short trainings on phantoms the batch matters most, since four
# times the patches teach more in as many updates; at as many volumes it matters less. Gradient
# consistency that minds the sign hurts bone, which is dark on MR and bright on CT. The cycle
# weight stays unresolved.
#
# Every combination of `vary` is trained from every seed on the same phantoms, with as many updates
# and the same draws; a larger batch begins with the patches of a smaller one. Where the batch is
# varied, a training with a larger one is also looked at on its way, when it has seen as many
# volumes as the smallest batch sees in all: with a rate that does not fall, that is a whole
# shorter training.
#
# The default is a smoke run of seconds, which proves that the path is whole and nothing else.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
# question
vary = ""  # as `factor_grid` reads it, two values each; "" takes gradient 0,1 and batch 1,2
seeds = "0"

# data
people_mr = 2  # phantoms to train on
people_ct = 2
testers = 3  # phantoms to test on; their CT is hidden from training
anatomy = 0  # seed of the phantoms: another one makes other people
weighting = "t2"  # of the phantoms' MR: t1 or t2
extent_mm = "60,60,60"  # of the phantoms, along x, y, z
spacing_mm = 6.0  # voxel size
ct_range = "-300,900"  # HU that become -1 and 1

# draws
patch = 8  # voxels a side
batch = 1  # patches of each modality a step
turn_sd = 0.0  # degrees
noise_sd = 0.0  # in ranges of the scan
flip = True  # mirror left and right
foreground = 0.5  # share of patches around a place inside the body

# network
generator = "resnet1"  # unet_old, unet_updated or resnetN with N residual blocks
width = 2
norm = "instance"
spectral = False  # spectral norm in the generators
dims = 3.0  # 3, 2.5 or 2
disc_width = 2
disc_layers = 1
disc_spectral = False

# losses: weights, 0 leaves one out
adversarial = 1.0
cycle = 10.0
identity = 5.0
gradient = 0.0
information = 0.0
signed = True  # gradient consistency minds the sign, as the note's did

# training
steps = 4  # updates of every training
lr = 0.001
lr_disc = 0.0002
ema = 0.9  # of the averaged generators; 0 keeps none
pool = 20  # past fakes shown to each discriminator

# run
name = ""  # of the run, free text; its page is titled by what it is
threads = 1  # CPU threads; 0 leaves the setting
note = ""  # a sentence for the page
resume = False  # go on in the folder of a stopped run
out = ""  # folder of the run; "" makes runs/grid-<time>

# %%
from itertools import combinations

import numpy as np
from torch import set_num_threads

from medseg.data.manifest import data_digest, read_manifest
from medseg.data.split import split_items
from medseg.data.spine_cohort import make_spine_cohort
from medseg.data.unpaired import PatchSampling, unpaired_batches
from medseg.data.scans import load_sides
from medseg.io.files import write_json

# %%
from medseg.runs.folder import finish_run, read_json
from medseg.runs.page import show_run
from medseg.runs.paired_comparison import (
    TrainingPlan,
    compare_settings,
    draws_digest,
    evaluate_translator,
)
from medseg.runs.paired_comparison import (
    factor_grid,
    noting_draws,
    rows_at_equal_count,
    read_test_subjects,
)

# %%
from medseg.runs.parameters import PHANTOMS, begin_run, frozen, known_to, numbers
from medseg.runs.pictures import Tile, effect_figure, pair_figure, tile_figure
from medseg.train.statistics import factor_questions, answer_questions
from medseg.translate.baselines import best_intensity_map
from medseg.translate.loss_terms import weighted_loss
from medseg.translate.predict import load_translator, save_translator, translate_scan
from medseg.translate.scores import score_ct
from medseg.translate.settings import Settings
from medseg.translate.step import CycleGAN, fit_cyclegan

# %% [markdown]
# ## Config
#
# A cell is a plan: what the networks, losses and draws are told. A name that none of them knows is
# refused before the first training, and so is a factor that has not two values.

# %%
config = frozen(globals())
every_seed, window = numbers(config.seeds, int), numbers(config.ct_range)
cells = factor_grid(config.vary or "gradient=0,1;batch=1,2")
factors = list(cells[0])


def check(config):
    if odd := [f for f in factors if len({cell[f] for cell in cells}) != 2]:
        raise ValueError(f"a factor must have two values, got {odd[0]} in {config.vary!r}")
    if odd := {"steps", "seed", "decay_from", "size"} & set(factors):
        raise ValueError(f"{odd.pop()} must be the same for all, or nothing is compared")
    if config.testers < 2 or len(set(every_seed)) < len(every_seed):
        found = f"{config.testers} and {config.seeds!r}"
        raise ValueError(f"testers must be 2 or more and seeds must differ, got {found}")


check(config)

# %%
at = (config.spacing_mm,) * 3
base = TrainingPlan(
    Settings(spacing=at, decay_from=1.0, **known_to(Settings, config)),
    PatchSampling((config.patch,) * 3, **known_to(PatchSampling, config)),
)
plans = [base.but(**cell) for cell in cells]
least = min(plan.draw.batch for plan in plans)
if odd := [p.draw.batch for p in plans if config.steps * least % p.draw.batch]:
    raise ValueError(
        "steps must give whole numbers of updates at equal volumes, got"
        f" {config.steps} with batches {least} and {odd[0]}"
    )
run = begin_run("grid", config)

# %% [markdown]
# ## Run
#
# Each training is kept as soon as it is done, so a stopped run goes on with the next one.

# %%
cohort = run.folder / "cohort" / "manifest.csv"
if not cohort.exists():
    counts = config.people_mr, config.people_ct, config.testers, config.anatomy
    extent = numbers(config.extent_mm)
    make_spine_cohort(cohort.parent, *counts, at, at, extent, config.weighting, workers=1)
train, _ = split_items(read_manifest(cohort), seed=0)
mr, ct = load_sides(train, config.spacing_mm, window)
people = read_test_subjects(cohort)
jobs = [(seed, k) for seed in every_seed for k in range(len(plans))]


def kept(seed, k, end="json"):
    return run.folder / "trainings" / f"seed_{seed}_cell_{k:02d}.{end}"


if config.resume:
    run.rewind(config.steps * sum(kept(*job).exists() for job in jobs))
if config.threads:
    set_num_threads(config.threads)


# %% [markdown]
# One training. It is examined when it ends, and where the batch is varied also when it has seen as
# many volumes as the smallest batch sees in all.


# %%
def diary(row, number, seed, k):
    step = number * config.steps + row["step"]
    loss = weighted_loss(row, plans[k].settings)
    told = dict(seed=seed, step=step, steps=len(jobs) * config.steps, loss=loss)
    run.row("train", cells[k] | told)


def examined(model, seed, k, drawn):
    "What the training was, and a row for each person to test on."
    plan = plans[k]
    about = dict(cells[k], seed=seed, step=model.done)
    about["volumes"] = 2 * model.done * plan.draw.batch
    about["draws"] = draws_digest(drawn, least)
    rows, _ = evaluate_translator(model.translator(), plan.recipe(window), people)
    return about, [about | row for row in rows]


# %%
def training(number, seed, k):
    plan, drawn, found = plans[k].but(seed=seed), [], []
    model = CycleGAN(plan.settings)
    batches = noting_draws(unpaired_batches(mr, ct, plan.draw, config.steps), drawn)
    looks = {config.steps * least // plan.draw.batch, config.steps}
    for row in fit_cyclegan(model, batches):
        diary(row, number, seed, k)
        if model.done in looks:
            about, rows = examined(model, seed, k, drawn)
            found += rows
    file = kept(seed, k, "safetensors")
    save_translator(file, model.translator(), plan.recipe(window), about)
    write_json(kept(seed, k), found)


for number, job in enumerate(jobs):
    if not kept(*job).exists():
        training(number, *job)

# %%
table = [row for job in jobs for row in read_json(kept(*job))]
for row in table:
    run.row("subject", row)
for seed in every_seed:
    ends = [row for row in table if row["seed"] == seed and row["step"] == config.steps]
    if len({row["draws"] for row in ends}) > 1:
        raise RuntimeError("trainings of one seed saw different patches: nothing can be compared")

# %% [markdown]
# ## What each factor does
#
# The difference between twins: two trainings from one seed that differ in one factor. What it does
# is asked over seeds and people, for every factor, score and view at once, and the answers are
# corrected for their number: p below 0.01, or unresolved.

# %%
SHOWN = dict(
    mae_hu="error in the body, HU",
    bone_dice="Dice of bone by Otsu",
    pairing="pairing accuracy",
    effective="effective volumes",
    diversity_ratio="diversity ratio",
)
views = dict(step="as many updates")
if len({plan.draw.batch for plan in plans}) > 1:
    views["volumes"] = "as many volumes"
questions = []
for by, view in views.items():
    rows = rows_at_equal_count(table, by, factors + ["seed"])
    for f in factors:
        for score in SHOWN:
            questions += factor_questions(rows, f, factors, score, view=view)
effects = answer_questions(questions)

# %%
for effect in effects:
    run.row("effect", effect)
asked = [effect for effect in effects if effect["score"] in SHOWN]


def sentence(effect):
    return f"At {effect['view']}, {effect['score']}: {effect['says']}."


for effect in effects:
    print(sentence(effect))

# %% [markdown]
# Any two cells may be compared too, if one thing differs between them.

# %%
final = rows_at_equal_count(table, "step", factors + ["seed"])
rows_of = [[r for r in final if all(r[f] == cell[f] for f in factors)] for cell in cells]
pairs = []
for i, j in combinations(range(len(plans)), 2):
    told = compare_settings(plans[i], plans[j], rows_of[i], rows_of[j], "mae_hu")
    pairs.append(dict(one=i, two=j, **told))
answers = iter(answer_questions([question for pair in pairs for question in pair["questions"]]))
for pair in pairs:
    run.row("pair", pair | dict(questions=[next(answers) for _ in pair["questions"]]))


# %% [markdown]
# ## Artefacts


# %%
def named(cell):
    numeric = (int, float)
    values = {f: f"{v:g}" if isinstance(v, numeric) else v for f, v in cell.items()}
    return "\n".join(f"{f} {value}" for f, value in values.items())


run.figure(
    effect_figure(asked, SHOWN),
    "effects",
    "What changes from one twin to the other when one factor is changed. Orange: resolved, p below"
    " 0.01 over seeds and people after correction for all that was asked. Grey: unresolved."
    " Phantoms.",
)

# %%
first, middle, one = every_seed[0], people[0].mr.shape[0] // 2, people[0]
tiles = []
for k, cell in enumerate(cells):
    fake, _ = translate_scan(*load_translator(kept(first, k, "safetensors")), one.mr)
    tiles.append(Tile(fake.voxels[middle], named(cell), window))
half = -(-len(tiles) // 2)
above = [Tile(one.mr.voxels[middle], "MR"), *tiles[:half]]
below = [Tile(one.ct.voxels[middle], "hidden CT", window), *tiles[half:]]
run.figure(
    tile_figure([above, below]),
    f"cells_seed_{first}",
    f"The middle sagittal slice of {one.name} (phantom), and what each cell makes of it after"
    f" {config.steps} updates from seed {first}.",
)

# %%
run.figure(
    pair_figure(pairs, [named(cell) for cell in cells]),
    "pairs",
    "All that differs between any two cells. Bold: one thing, so they may be compared. Elsewhere no"
    " single cause can be named.",
)

# %%
headline = {}
for effect in asked:
    if effect["view"] == "as many updates" and effect["score"] == "mae_hu":
        change = " → ".join(map(str, effect["values"]))
        found = effect["word"]
        if found == "resolved":
            found = f"{effect['difference']:+.1f}"
        headline[f"{effect['factor']} {change}, error in HU"] = found

# %%
tables = [best_intensity_map(t.mr, t.ct).apply(t.mr) for t in people]
best = np.mean([score_ct(made, t.ct)["mae_hu"] for made, t in zip(tables, people)])
error = np.mean([row["mae_hu"] for row in final])
notes = [
    PHANTOMS,
    (
        f"{len(jobs)} trainings of {config.steps} updates each, on the same {len(mr)} MR and"
        f" {len(ct)} CT; within a seed all saw the same patches in the first {least} of each batch."
    ),
    (
        f"Mean error {error:.0f} HU; the best table from grey value to HU, made with the answer in"
        f" hand, has {best:.0f}."
    ),
]
told = ("mae_hu", "bone_dice", "effective", "pairing", "failed trainings")
notes += [sentence(effect) for effect in effects if effect["score"] in told]

# %%
alone = sum(len(pair["differ"]) == 1 for pair in pairs)
every = next(pair["says"] for pair in pairs if len(pair["differ"]) == len(factors))
notes.append(
    f"Of {len(pairs)} pairs of cells {alone} differ in one thing. Of the others no single cause can"
    f" be named; cells that differ in all: {every}."
)
if len(every_seed) < 3:
    notes.append(f"{len(every_seed)} seeds are fewer than 3: read nothing from this.")
if config.note:
    notes.append(config.note)

# %%
finish_run(
    run,
    headline=headline,
    table=table,
    cost=dict(
        updates=config.steps * len(jobs),
        trainings=len(jobs),
        volumes=sum(2 * config.steps * plans[k].draw.batch for _, k in jobs),
    ),
    data="phantom",
    data_digest=data_digest(read_manifest(cohort)),
    notes=notes,
)

# %% [markdown]
# ## Conclusion
#
# What came is in the record, not typed here. A factor whose difference luck may make is
# unresolved, however large its mean.

# %%
print(f"{run.folder}:", "; ".join(f"{key}: {value}" for key, value in headline.items()))

# %%
show_run(run)
