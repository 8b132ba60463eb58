# %% [markdown]
# # What each factor does
#
# **Question.** The spine note found its run with gradient consistency worse and blamed the cycle weight of 3. That run differed in its batch too. With all of them set
# free of each other, what does gradient consistency do, what the cycle weight, what the batch?
#
# **Prediction, before any run.** In short trainings on phantoms the batch matters most, since four times the patches teach more in as many updates; at as many volumes it matters less. Gradient consistency that minds the sign
# hurts bone, which is dark on MR and bright on CT. The cycle weight stays unresolved.
#
# Every combination of `vary` is trained from every seed on the same phantoms, with as many updates and the same draws; a larger batch begins with the patches of a smaller one. Where the batch is varied, a training with
# a larger one is also looked at on its way, when it has seen as many volumes as the smallest batch sees in all: with a rate that does not fall, that is a whole shorter training.
#
# The default is a smoke run of seconds, which proves that the path is whole and nothing else.

# %% tags=["parameters"]
name = "smoke"           # of the run, free text
vary = ""                # what is varied, as `trial.grid` reads it, two values each; "" takes gradient 0,1 and batch 1,2
seeds = "0"
people_mr = 2            # phantoms to train on
people_ct = 2
testers = 3              # phantoms to test on; their CT is hidden from training
anatomy = 0              # seed of the phantoms: another one makes other people
weighting = "t2"         # of the phantoms' MR: t1 or t2
extent_mm = "60,60,60"   # of the phantoms, along x, y, z
spacing_mm = 6.0         # voxel size
ct_range = "-300,900"    # HU that become -1 and 1
patch = 8                # voxels a side
batch = 1                # patches of each modality a step
turn_sd = 0.0            # degrees
noise_sd = 0.0           # in ranges of the scan
flip = True              # mirror left and right
foreground = 0.5         # share of patches around a place inside the body
steps = 4                # updates of every training
generator = "resnet1"    # unet_old, unet_updated or resnetN with N residual blocks
width = 2
norm = "instance"
spectral = False         # spectral norm in the generators
dims = 3.0               # 3, 2.5 or 2
disc_width = 2
disc_layers = 1
disc_spectral = False
adversarial = 1.0        # weights of the losses; 0 leaves one out
cycle = 10.0
identity = 5.0
gradient = 0.0
information = 0.0
signed = True            # gradient consistency minds the sign, as the note's did
lr = 0.001
lr_disc = 0.0002
ema = 0.9                # of the averaged generators; 0 keeps none
pool = 20                # past fakes shown to each discriminator
threads = 1              # CPU threads; 0 leaves the setting
note = ""                # a sentence for the page
resume = False           # go on in the folder of a stopped run
out = ""                 # folder of the run; "" makes runs/grid-<time>

# %%
from dataclasses import asdict, dataclass, fields
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
from torch import set_num_threads

from medseg.data.manifest import data_digest, read_manifest, split_items
from medseg.data.spinecohort import make_spine_cohort
from medseg.data.unpaired import PatchDraw, load_sides, unpaired_batches
from medseg.log.runs import finish_run, read_json, resume_run, start_run
from medseg.train.statistics import factor, judge
from medseg.translate.baselines import best_intensity_map
from medseg.translate.predict import load_translator, save_translator, translate_scan
from medseg.translate.scores import score_ct
from medseg.translate.settings import Settings
from medseg.translate.step import CycleGAN, fit_cyclegan
from medseg.translate.terms import weight_of
from medseg.translate.trial import Plan, compare, draws_digest, examine, grid, noted, on_par, read_testers
from medseg.volumes.files import write_json


# %% [markdown]
# ## Config
#
# A cell is a plan: what the networks, losses and draws are told. A name that none of them knows is refused before the first training, and so is a factor that has not two values.

# %%
@dataclass(frozen=True)
class Config:
    name: str; vary: str; seeds: str; people_mr: int; people_ct: int; testers: int; anatomy: int; weighting: str; extent_mm: str; spacing_mm: float; ct_range: str; patch: int; threads: int; note: str

    def __post_init__(self):
        if odd := [f for f in self.factors if len({c[f] for c in self.cells}) != 2]: raise ValueError(f"a factor must have two values, got {odd[0]} in {self.vary!r}")
        if odd := {"steps", "seed", "decay_from", "size"} & set(self.factors): raise ValueError(f"{odd.pop()} must be the same for all, or nothing is compared")
        if self.testers < 2 or len(self.every_seed) < 1 or len(set(self.every_seed)) < len(self.every_seed): raise ValueError(f"testers must be 2 or more and seeds must differ, got {self.testers} and {self.seeds!r}")

    @property
    def cells(self): return grid(self.vary or "gradient=0,1;batch=1,2")
    @property
    def factors(self): return list(self.cells[0])
    @property
    def every_seed(self): return [int(s) for s in self.seeds.split(",")]
    @property
    def window(self): return tuple(map(float, self.ct_range.split(",")))


config = Config(**{f.name: globals()[f.name] for f in fields(Config)})
told = {f.name: globals()[f.name] for kind in (Settings, PatchDraw) for f in fields(kind) if f.name in globals()}
base = Plan(Settings(spacing=(spacing_mm,)*3, decay_from=1.), PatchDraw((patch,)*3)).but(**told)
plans = [base.but(**c) for c in config.cells]
least = min(p.draw.batch for p in plans)
if odd := [p.draw.batch for p in plans if steps*least % p.draw.batch]: raise ValueError(f"steps must give whole numbers of updates at equal volumes, got {steps} with batches {least} and {odd[0]}")
run = (resume_run if resume else start_run)("grid", asdict(config) | told, out)

# %% [markdown]
# ## Run
#
# Each training is kept as soon as it is done, so a stopped run goes on with the next one.

# %%
cohort = run.folder/"cohort"/"manifest.csv"
if not cohort.exists(): make_spine_cohort(cohort.parent, people_mr, people_ct, testers, anatomy, (spacing_mm,)*3, (spacing_mm,)*3, tuple(map(float, extent_mm.split(","))), weighting, workers=1)
mr, ct = load_sides(split_items(read_manifest(cohort), seed=0)[0], spacing_mm, config.window)
people = read_testers(cohort)
jobs = [(seed, k) for seed in config.every_seed for k in range(len(plans))]
def kept(seed, k, end="json"): return run.folder/"trainings"/f"seed_{seed}_cell_{k:02d}.{end}"


if resume: run.rewind(steps*sum(kept(*job).exists() for job in jobs))
if threads: set_num_threads(threads)

# %%
for number, (seed, k) in enumerate(jobs):
    p, cell, drawn, found = plans[k].but(seed=seed), config.cells[k], [], []
    if not kept(seed, k).exists():
        model = CycleGAN(p.settings)
        for row in fit_cyclegan(model, noted(unpaired_batches(mr, ct, p.draw, steps), drawn)):
            loss = sum(weight_of(t, p.settings)*v for t, v in row.items() if t.split("_")[0] in p.settings.weights)
            run.row("train", dict(cell, seed=seed, step=number*steps + row["step"], steps=len(jobs)*steps, loss=loss))
            if model.done in {steps*least//p.draw.batch, steps}:
                about = dict(cell, seed=seed, step=model.done, volumes=2*model.done*p.draw.batch, draws=draws_digest(drawn, least))
                found += [about | r for r in examine(model.translator(), p.recipe(config.window), people)[0]]
        save_translator(kept(seed, k, "safetensors"), model.translator(), p.recipe(config.window), about)
        write_json(kept(seed, k), found)
table = [row for job in jobs for row in read_json(kept(*job))]
for row in table: run.row("subject", row)
if any(len({r["draws"] for r in table if r["seed"] == seed and r["step"] == steps}) > 1 for seed in config.every_seed): raise RuntimeError("trainings of one seed saw different patches: nothing can be compared")

# %% [markdown]
# ## What each factor does
#
# The difference between twins: two trainings from one seed that differ in one factor. What it does is asked over seeds and people, for every factor, score and view at once, and the answers are corrected for their number: p below 0.01, or unresolved.

# %%
SHOWN = dict(mae_hu="error in the body, HU", bone_dice="Dice of bone by Otsu", pairing="pairing accuracy", effective="effective volumes", diversity_ratio="diversity ratio")
views = ["step"] + ["volumes"]*(len({p.draw.batch for p in plans}) > 1)
effects = judge([q for by in views for f in config.factors for s in SHOWN
                 for q in factor(on_par(table, by, config.factors + ["seed"]), f, config.factors, s, view="as many updates" if by == "step" else "as many volumes")])
for e in effects: run.row("effect", e)
asked = [e for e in effects if e["score"] in SHOWN]


def sentence(e): return f"At {e['view']}, {e['score']}: {e['says']}."


final = on_par(table, "step", config.factors + ["seed"])
rows_of = [[r for r in final if all(r[f] == c[f] for f in config.factors)] for c in config.cells]
pairs = [dict(one=i, two=j, **compare(plans[i], plans[j], rows_of[i], rows_of[j], "mae_hu")) for i, j in combinations(range(len(plans)), 2)]
answers = iter(judge([q for pair in pairs for q in pair["questions"]]))
for pair in pairs: run.row("pair", pair | dict(questions=[next(answers) for _ in pair["questions"]]))
for e in effects: print(sentence(e))


# %% [markdown]
# ## Artefacts

# %%
def named(c): return "\n".join(f"{f} {c[f]:g}" if isinstance(c[f], (int, float)) else f"{f} {c[f]}" for f in config.factors)


fig, axs = plt.subplots(len(views), len(SHOWN), figsize=(13, .6 + len(views)*(.5 + .4*len(config.factors))), layout="constrained", squeeze=False)
for e in asked:
    ax = axs[views.index("step" if e["view"] == "as many updates" else "volumes"), list(SHOWN).index(e["score"])]
    y = config.factors.index(e["factor"])
    ax.plot(e["twins"], [y]*len(e["twins"]), "o", ms=5, alpha=.6, color="tab:orange" if e["word"] == "resolved" else "tab:gray")
    ax.axvline(0, color="k", lw=.6); ax.set_title(f"{SHOWN[e['score']]}\n{e['view']}", fontsize=8); ax.tick_params(labelsize=7)
    ax.set_yticks(range(len(config.factors)), ["\n".join((f, " → ".join(map(str, next(e["values"] for e in asked if e["factor"] == f))))) for f in config.factors], fontsize=7); ax.set_ylim(-.6, len(config.factors) - .4)
run.figure(fig, "effects", "What changes from one twin to the other when one factor is changed. Orange: resolved, p below 0.01 over seeds and people after correction for all that was asked. Grey: unresolved. Phantoms.")

# %%
fig, axs = plt.subplots(2, len(plans)//2 + 1, figsize=(1.6*(len(plans)//2 + 1), 4.6), layout="constrained", squeeze=False)
middle, seed = people[0].mr.shape[0]//2, config.every_seed[0]
for ax, voxels, title in zip(axs[:, 0], (people[0].mr.voxels, people[0].ct.voxels), ("MR", "hidden CT")): ax.set_title(title, fontsize=8); ax.imshow(voxels[middle].T, cmap="gray", origin="lower", **({} if title == "MR" else dict(vmin=config.window[0], vmax=config.window[1])))
for k, ax in enumerate(axs[:, 1:].flat):
    made = translate_scan(*load_translator(kept(seed, k, "safetensors")), people[0].mr)[0]
    ax.imshow(made.voxels[middle].T, cmap="gray", origin="lower", vmin=config.window[0], vmax=config.window[1]); ax.set_title(named(config.cells[k]), fontsize=7)
for ax in axs.flat: ax.set_axis_off()
run.figure(fig, f"cells_seed_{seed}", f"The middle sagittal slice of {people[0].name} (phantom), and what each cell makes of it after {steps} updates from seed {seed}.")

# %%
fig, ax = plt.subplots(figsize=(1 + .95*len(plans),)*2, layout="constrained")
count = np.full((len(plans),)*2, np.nan)
for pair in pairs: count[pair["one"], pair["two"]] = count[pair["two"], pair["one"]] = len(pair["differ"])
ax.imshow(count, cmap="Oranges", vmin=1, vmax=len(config.factors) + 2)
for pair in pairs:
    for i, j in ((pair["one"], pair["two"]), (pair["two"], pair["one"])): ax.text(j, i, "\n".join(pair["differ"]), ha="center", va="center", fontsize=7, weight="bold" if len(pair["differ"]) == 1 else None)
for set_ticks in (ax.set_xticks, ax.set_yticks): set_ticks(range(len(plans)), [named(c) for c in config.cells], fontsize=7)
run.figure(fig, "pairs", "All that differs between any two cells. Bold: one thing, so they may be compared. Elsewhere no single cause can be named.")

# %%
best = np.mean([score_ct(best_intensity_map(t.mr, t.ct).apply(t.mr), t.ct)["mae_hu"] for t in people])
short = {e["factor"]: e for e in asked if e["view"] == "as many updates" and e["score"] == "mae_hu"}
headline = {f"{f} {' → '.join(map(str, e['values']))}, error in HU": f"{e['difference']:+.1f}" if e["word"] == "resolved" else e["word"] for f, e in short.items()}
notes = ["All scans are phantoms: nothing here is a claim about patients.",
         f"{len(jobs)} trainings of {steps} updates each, on the same {len(mr)} MR and {len(ct)} CT; within a seed all saw the same patches in the first {least} of each batch.",
         f"Mean error {np.mean([r['mae_hu'] for r in final]):.0f} HU; the best table from grey value to HU, made with the answer in hand, has {best:.0f}.",
         *[sentence(e) for e in effects if e["score"] in ("mae_hu", "bone_dice", "effective", "pairing", "failed trainings")],
         f"Of {len(pairs)} pairs of cells {sum(len(p['differ']) == 1 for p in pairs)} differ in one thing. Of the others no single cause can be named; cells that differ in all: {next(p['says'] for p in pairs if len(p['differ']) == len(config.factors))}."]
notes += [f"{len(config.every_seed)} seeds are fewer than 3: read nothing from this."]*(len(config.every_seed) < 3)
result = finish_run(run, headline, table, dict(updates=steps*len(jobs), trainings=len(jobs), volumes=sum(2*steps*plans[k].draw.batch for _, k in jobs)), data="phantom", data_digest=data_digest(read_manifest(cohort)), notes=notes + [note]*bool(note))

# %% [markdown]
# ## Conclusion
#
# What came is in the record, not typed here. A factor whose difference luck may make is unresolved, however large its mean.

# %%
print(f"{run.folder}:", "; ".join(f"{k}: {v}" for k, v in headline.items()))
