# %% [markdown]
# # Trainings that collapse, and trainings that do not
#
# **Question.** Can the few cheap numbers that a monitor reads every few steps tell a training that collapses from one that does not,
# early enough to be worth stopping?
#
# **Prediction, before any run.** Outputs that are alike are easily told: variety falls at once. A table from grey to HU keeps
# people apart and needs its own number; so does a message that is too faint to see. A discriminator that has won may look
# healthy for a long time, since a generator that stands still still passes edges on.
#
# One run makes many short trainings, one for each recipe and seed, half of them made to collapse. What the monitor sees is
# written at each look; at the end the made CT of those validation people are held against their hidden CT, which the monitor never sees.
# A stopped run goes on with the next training.

# %% tags=["parameters"]
name = "smoke"          # of the run, free text
recipes = "plain,constant"  # which, with commas; "" takes all
seeds = "0"             # of the trainings, with commas
people = 4              # phantoms to train on, of each modality
validators = 4          # phantoms that the monitor looks at, and nobody is tested on; their CT is hidden
anatomy = 0             # seed of the phantoms: another one makes other people
voxels = 16             # a side
spacing_mm = 6.0
steps = 12              # of each training
every = 3               # steps between looks
threads = 1             # CPU threads
resume = False          # go on in the folder of a stopped run
out = ""                # folder of the run; "" makes runs/collapse-<time>

# %%
from dataclasses import asdict, dataclass, fields

import numpy as np

from medseg.data.manifest import data_digest, read_manifest
from medseg.data.spinecohort import make_spine_cohort
from medseg.data.unpaired import load_scan, load_sides, scale_ct
from medseg.log.runs import finish_run, resume_run, start_run
from medseg.train.loop import seed_everything
from medseg.translate.alarm import Watch, looks, made
from medseg.translate.causes import RECIPES, short_training
from medseg.translate.calibration import judged_by_answers
from medseg.translate.scores import body_mask, hidden_ct
from medseg.volumes.files import read_rows

# %% [markdown]
# ## Config


# %%
@dataclass(frozen=True)
class Config:
    name: str; recipes: str; seeds: str; people: int; validators: int; anatomy: int; voxels: int; spacing_mm: float; steps: int; every: int; threads: int

    def __post_init__(self):
        if unknown := sorted(set(self.chosen) - set(RECIPES)): raise ValueError(f"recipes must be of {sorted(RECIPES)}, got {unknown}")
        if min(self.people, self.validators) < 4 or self.voxels < 12 or not 1 <= self.every <= self.steps: raise ValueError(f"people and validators must be at least 4, voxels 12, and every in 1..steps, got {self}")

    @property
    def chosen(self): return self.recipes.split(",") if self.recipes else list(RECIPES)
    @property
    def plan(self): return [(recipe, int(seed)) for seed in self.seeds.split(",") for recipe in self.chosen]


config = Config(**{f.name: globals()[f.name] for f in fields(Config)})
run = (resume_run if resume else start_run)("collapse", asdict(config), out)

# %% [markdown]
# ## Run
#
# MR and CT of different people to train on; further people to look at, marked validation: limits that were found on test people would have seen the test.

# %%
cohort, at = run.folder/"cohort"/"manifest.csv", (spacing_mm,)*3
if not cohort.exists(): make_spine_cohort(cohort.parent, people, people, 0, anatomy, at, at, (voxels*spacing_mm,)*3, "t2", workers=1, validation=validators)
train, validation = ([i for i in read_manifest(cohort) if i.split == side] for side in ("train", "validation"))
mr, ct = load_sides(train)
watch = Watch(np.stack([load_scan(i).unit() for i in validation]), np.stack([s.unit() for s in ct]), at)
hu = np.stack([hidden_ct(cohort.parent, i.subject)[0].voxels for i in validation])
answers, bodies = scale_ct(hu), np.stack([body_mask(v) for v in hu])

# %% [markdown]
# Each training by itself: one row a look, then one row with what the hidden answers say at the end.

# %%
rows = read_rows(run.folder/"rows.jsonl") if (run.folder/"rows.jsonl").exists() else []
if not any(r["kind"] == "measured" for r in rows): run.row("measured", looks(watch, answers))  # what the best outputs would look like
known = {(r["recipe"], r["seed"]) for r in rows if r["kind"] == "training"}
for recipe, s in config.plan:
    if (recipe, s) in known: continue
    who = dict(recipe=recipe, cause=RECIPES[recipe].cause, seed=s)
    seed_everything(s, threads)
    for model, row in short_training(RECIPES[recipe], s, mr, ct, watch, steps, every):
        found = judged_by_answers(outputs := made(model, watch.inputs), watch.inputs, answers, bodies)
        run.row("look", who | row | found)
        (run.folder/"outputs").mkdir(exist_ok=True)
        np.save(run.folder/"outputs"/f"{recipe}_{s}_{row['step']:04d}.npy", outputs.astype(np.float16))
    run.row("training", who | dict(step=row["step"]) | found)

# %% [markdown]
# ## Artefacts

# %%
rows = read_rows(run.folder/"rows.jsonl")
table = [{k: v for k, v in r.items() if k != "kind"} for r in rows if r["kind"] == "training"]
result = finish_run(run, headline={"trainings": len(table), "made to collapse": sum(bool(r["cause"]) for r in table)}, table=table, cost=dict(updates=steps*len(table)), data="phantom",
                    data_digest=data_digest(train + validation), notes=["All scans are phantoms: nothing here is a claim about patients."])

# %% [markdown]
# ## Conclusion
#
# What came is read from the record by the chapter on calibration.

# %%
print(f"{len(table)} trainings of {steps} steps")
