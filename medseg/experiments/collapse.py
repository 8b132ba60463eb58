# %% [markdown]
# # Trainings that collapse, and trainings that do not
#
# **Question.** Can the few cheap numbers that a monitor reads every few steps tell a training that
# collapses from one that does not, early enough to be worth stopping?
#
# **Prediction, before any run.** Outputs that are alike are easily told: variety falls at once. A
# table from grey to HU keeps people apart and needs its own number; so does a message that is too
# faint to see. A discriminator that has won may look healthy for a long time, since a generator
# that stands still still passes edges on.
#
# One run makes many short trainings, one for each recipe and seed, half of them made to collapse.
# What the monitor sees is written at each look; at the end the made CT of those validation people
# are held against their hidden CT, which the monitor never sees. A stopped run goes on with the
# next training.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
# data
people = 4  # phantoms to train on, of each modality
validators = 4  # phantoms that the monitor looks at, and nobody is tested on; their CT is hidden
anatomy = 0  # seed of the phantoms: another one makes other people
voxels = 16  # a side
spacing_mm = 6.0

# training
recipes = "plain,constant"  # which, with commas; "" takes all
seeds = "0"  # of the trainings, with commas
steps = 12  # of each training
every = 3  # steps between looks

# run
name = ""  # of the run, free text; its page is titled by what it is
threads = 1  # CPU threads
resume = False  # go on in the folder of a stopped run
out = ""  # folder of the run; "" makes runs/collapse-<time>

# %%
import numpy as np

from medseg.collapse.alarm import MonitorScans, output_numbers, generate
from medseg.collapse.calibration import scores_from_hidden_ct
from medseg.collapse.causes import RECIPES, short_training
from medseg.data.manifest import data_digest, read_manifest
from medseg.data.spine_cohort import make_spine_cohort
from medseg.data.scans import load_scan, load_sides, scale_ct
from medseg.io.files import read_rows
from medseg.runs.folder import finish_run
from medseg.runs.page import show_run
from medseg.runs.parameters import PHANTOMS, begin_run, frozen, numbers
from medseg.train.loop import seed_everything
from medseg.translate.scores import body_mask, hidden_ct

# %% [markdown]
# ## Config

# %%
config = frozen(globals())
chosen = config.recipes.split(",") if config.recipes else list(RECIPES)
plan = [(recipe, seed) for seed in numbers(config.seeds, int) for recipe in chosen]


def check(config):
    if unknown := sorted(set(chosen) - set(RECIPES)):
        raise ValueError(f"recipes must be of {sorted(RECIPES)}, got {unknown}")
    few = min(config.people, config.validators) < 4
    if few or config.voxels < 12 or not 1 <= config.every <= config.steps:
        raise ValueError(
            "people and validators must be at least 4, voxels 12, and every in 1..steps, got"
            f" {config}"
        )


check(config)
run = begin_run("collapse", config)

# %% [markdown]
# ## Run
#
# MR and CT of different people to train on; further people to look at, marked validation: limits
# that were found on test people would have seen the test.

# %%
cohort, at = run.folder / "cohort" / "manifest.csv", (config.spacing_mm,) * 3
if not cohort.exists():
    counts = config.people, config.people, 0, config.anatomy
    extent = (config.voxels * config.spacing_mm,) * 3
    more = dict(workers=1, validation=config.validators)
    make_spine_cohort(cohort.parent, *counts, at, at, extent, "t2", **more)
items = read_manifest(cohort)
train = [item for item in items if item.split == "train"]
validation = [item for item in items if item.split == "validation"]

# %%
mr, ct = load_sides(train)
inputs = np.stack([load_scan(item).unit() for item in validation])
watch = MonitorScans(inputs, np.stack([scan.unit() for scan in ct]), at)
hidden = [hidden_ct(cohort.parent, item.subject)[0].voxels for item in validation]
answers = scale_ct(np.stack(hidden))
bodies = np.stack([body_mask(voxels) for voxels in hidden])

# %% [markdown]
# Each training by itself: one row a look, then one row with what the hidden answers say at the
# end. The first row of all says what the best outputs would look like.

# %%
diary = run.folder / "rows.jsonl"
rows = read_rows(diary) if diary.exists() else []
if not any(row["kind"] == "measured" for row in rows):
    run.row("measured", output_numbers(watch, answers))
known = {(row["recipe"], row["seed"]) for row in rows if row["kind"] == "training"}
(run.folder / "outputs").mkdir(exist_ok=True)

# %%
for recipe, seed in plan:
    if (recipe, seed) in known:
        continue
    who = dict(recipe=recipe, cause=RECIPES[recipe].cause, seed=seed)
    seed_everything(seed, config.threads)
    training = short_training(RECIPES[recipe], seed, mr, ct, watch, config.steps, config.every)
    for model, row in training:
        outputs = generate(model, watch.inputs)
        found = scores_from_hidden_ct(outputs, watch.inputs, answers, bodies)
        run.row("look", who | row | found)
        file = f"{recipe}_{seed}_{row['step']:04d}.npy"
        np.save(run.folder / "outputs" / file, outputs.astype(np.float16))
    run.row("training", who | dict(step=row["step"]) | found)

# %% [markdown]
# ## Artefacts

# %%
table = [row for row in read_rows(diary) if row.pop("kind") == "training"]
collapsed = sum(bool(row["cause"]) for row in table)
finish_run(
    run,
    headline={"trainings": len(table), "made to collapse": collapsed},
    table=table,
    cost=dict(updates=config.steps * len(table)),
    data="phantom",
    data_digest=data_digest(train + validation),
    notes=[PHANTOMS],
    people=dict(train=train, validation=validation),
    manifest=cohort,
)

# %% [markdown]
# ## Conclusion
#
# What came is read from the record by the chapter on calibration.

# %%
print(f"{len(table)} trainings of {config.steps} steps")

# %%
show_run(run)
