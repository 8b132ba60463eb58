# %% [markdown]
# # Two dimensions, two and a half, three
#
# **Question.** The note builds in 3-D because slices that are translated one by one need not fit together. Does a CycleGAN that sees volumes make CTs of less jitter between slices, and better bone, than one that sees axial slices, or slices with two neighbours on each side, after equally many updates on the same phantoms?
#
# **Prediction, before any run.** Jitter: yes, 2-D most, 3-D least, for even with random weights they stand in that order. Bone and HU: nothing to be told apart, for trainings so short differ more from seed to seed.
#
# Without a manifest this notebook makes its own phantoms and trains for seconds: a smoke run, which proves that the path is whole and nothing else.

# %% tags=["parameters"]
name = "smoke"          # of the run, free text
manifest = ""           # CSV with subject,image,split,modality of a phantom cohort; "" makes one
people = 1              # phantoms to train on, of each modality
testers = 1             # phantoms to test on; their CT is hidden from training
anatomy = 0             # seed of the phantoms
extent_mm = "72,84,66"  # of the phantoms, along x, y, z
spacing_mm = 6.0        # voxel size to work at
ct_range = "-300,900"   # HU that become -1 and 1
patch = "12,12,8"       # voxels along x, y, z
dims = "2,2.5,3"        # what is compared
seeds = "0,1,2"         # trainings of each
steps = 2               # updates of each training
generator = "resnet1"   # as for `generator`; all that follows is the same for all dims
width = 2
disc_width = 2
disc_layers = 1
adversarial = 3.0
cycle = 10.0
identity = 2.0
gradient = 2.0
lr = 0.001
lr_disc = 0.0002
ema = 0.98
decay_from = 0.5
threads = 1             # CPU threads
models = ""             # folder of translators; those that are there are not trained again; "" is that of the run
note = ""               # a sentence for the page
resume = False          # go on in the folder of a stopped run
out = ""                # folder of the run; "" makes runs/dimensions-<time>

# %%
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import process_time

import numpy as np
from matplotlib.figure import Figure

from medseg.data.manifest import data_digest, read_manifest, split_items
from medseg.data.spinecohort import make_spine_cohort
from medseg.data.unpaired import PatchDraw, load_sides, unpaired_batches
from medseg.log.runs import finish_run, resume_run, start_run
from medseg.segment.metrics import dice_score
from medseg.train.statistics import ask, bands, judge
from medseg.train.checkpoint import load_checkpoint
from medseg.train.loop import seed_everything
from medseg.translate.axis import curvatures
from medseg.translate.bone import bone_mask, bone_uncertainty, patient_mask
from medseg.translate.doubt import judge_doubt
from medseg.translate.jitter import bone_jitter, slice_jitter
from medseg.translate.predict import TranslateRecipe, load_translator, save_translator, translate_scan
from medseg.translate.scores import hidden_ct, masked_mae
from medseg.translate.settings import Settings
from medseg.translate.step import CycleGAN, fit_cyclegan
from medseg.translate.surface import surface_error
from medseg.volumes.files import InputError, plain
from medseg.volumes.read import read_volume
from medseg.volumes.vertebra import BONE
from medseg.volumes.volume import Volume


# %% [markdown]
# ## Config

# %%
@dataclass(frozen=True)
class Config:
    name: str; manifest: str; people: int; testers: int; anatomy: int; extent_mm: str; spacing_mm: float; ct_range: str; patch: str; dims: str; seeds: str; threads: int; models: str; note: str

    def __post_init__(self):
        if min(self.people, self.testers) < 1 or not self.spacing_mm > 0: raise ValueError(f"people and testers must be at least 1 and spacing_mm above 0, got {self.people}, {self.testers} and {self.spacing_mm}")
        if len(self.seeds.split(",")) < 3: raise ValueError(f"seeds must be three or more: with fewer nothing is resolved, got {self.seeds!r}")

    @property
    def window(self): return tuple(map(float, self.ct_range.split(",")))
    @property
    def size(self): return tuple(map(int, self.patch.split(",")))
    @property
    def trainings(self): return [(d, s) for s in map(int, self.seeds.split(",")) for d in map(float, self.dims.split(","))]


config = Config(**{f.name: globals()[f.name] for f in fields(Config)})
given = {f.name: globals()[f.name] for f in fields(Settings) if f.name in globals() and f.name not in ("dims",)}
asked = {(d, s): Settings(**given, dims=d, seed=s, spacing=(config.spacing_mm,)*3) for d, s in config.trainings}
run = (resume_run if resume else start_run)("dimensions", asdict(config) | given, out)
if resume: run.rewind(0)

# %% [markdown]
# ## Run
#
# One cohort for all. The batch of a step depends on the seed and the step alone, so the three kinds of a seed see the same patches in the same order.

# %%
cohort = Path(config.manifest) if config.manifest else run.folder/"cohort"/"manifest.csv"
if not cohort.exists(): make_spine_cohort(cohort.parent, config.people, config.people, config.testers, config.anatomy, (config.spacing_mm,)*3, (config.spacing_mm,)*3, tuple(map(float, config.extent_mm.split(","))))
train, test = split_items(read_manifest(cohort), seed=0)
test = [item for item in test if item.modality == "MR"]
mr, ct = load_sides(train, config.spacing_mm, config.window)


def kept(dims, seed): return Path(config.models or run.folder/"models")/f"dims_{dims:g}_seed_{seed}.safetensors"


def trained(dims, seed):
    "Train and keep one translator, or find it."
    s, draw, path = asked[dims, seed], PatchDraw(config.size, 1, seed, flip=True, foreground=.5), kept(dims, seed)
    if not path.exists():
        seed_everything(seed, config.threads)
        began, model = process_time(), CycleGAN(s)
        for row in fit_cyclegan(model, unpaired_batches(mr, ct, draw, s.steps)): pass
        recipe = TranslateRecipe(s.generator, s.width, s.norm, s.spectral, s.up, dims, s.residual, "mr2ct", config.size, spacing_mm=config.spacing_mm, ct_range=config.window, mirrored=True)
        save_translator(path, model.translator(), recipe, dict(run="dimensions", seed=seed, step=model.done, settings=asdict(s), draw=asdict(draw), seconds=round(process_time() - began, 1)))
    about = load_checkpoint(path)[1]
    if differ := [k for k, v in plain(asdict(s)).items() if about["settings"][k] != v] + [k for k, v in plain(asdict(draw)).items() if about["draw"][k] != v]: raise InputError("models_differ", path, differ[0], "another value", "the settings of this run", "name an empty folder")
    return about["seconds"]


seconds = {}
for dims_, seed_ in config.trainings:
    seconds[dims_, seed_] = trained(dims_, seed_)
    run.row("training", dict(dims=dims_, seed=seed_, steps=steps, seconds=seconds[dims_, seed_]))
    print(f"{dims_:g} dimensions, seed {seed_}: {steps} updates in {seconds[dims_, seed_]} s of one core")

# %% [markdown]
# Test: people that were not in training. HU where the patient is, bone by Otsu against the true bone, and what changes from slice to slice beyond what the measured CT does.

# %%
scans = {item.subject: read_volume(item.image) for item in test}
truth = {who: hidden_ct(cohort.parent, who) for who in scans}
body = {who: patient_mask(real) for who, (real, _) in truth.items()}
bone = {who: np.isin(regions.voxels, BONE) for who, (_, regions) in truth.items()}
made, table = {}, []
for dims_, seed_ in config.trainings:
    for who, scan in scans.items():
        fake = made[dims_, seed_, who] = translate_scan(*load_translator(kept(dims_, seed_)), scan)[0]
        real, mask = truth[who][0], bone_mask(fake, body=body[who])[0]
        flat, ragged = slice_jitter(fake, real, body[who]), bone_jitter(mask, bone_mask(real, body=body[who])[0])
        surface = surface_error(mask, Volume(bone[who], real.affine), n=4000, step_mm=2.)["assd_mm"] if mask.voxels.any() else float("nan")
        table.append(dict(dims=dims_, seed=seed_, subject=who, mae_hu=masked_mae(fake.voxels, real.voxels, body[who]), bone_dice=dice_score(mask.voxels > 0, bone[who]), surface_mm=surface,
                          jitter_hu=flat["jitter_hu"], ratio=flat["ratio"], own_ratio=flat["own_ratio"], flicker_hu=flat["flicker_hu"], mask_excess=ragged["excess"], own_excess=ragged["own_excess"]))
        run.row("subject", table[-1])

# %% [markdown]
# Of the people together: whether columns bend as their MR says. And of the trainings together: whether their votes, and those of thresholds, doubt the bone where it is wrong.

# %%
bends = [dict(dims=d, seed=s, bend_agreement=curvatures(np.stack([truth[w][0].voxels for w in scans]), np.stack([made[d, s, w].voxels for w in scans]), (config.spacing_mm,)*3)["agreement"]) for d, s in config.trainings]
doubts, kinds = [], sorted({d for d, _ in config.trainings})
for d in kinds:
    for who in scans:
        many = [made[d, s, who] for e, s in config.trainings if e == d]
        for kind, votes in (("thresholds", bone_uncertainty(many[0])), ("trainings", bone_uncertainty(many, sweep=(0,))), ("both", bone_uncertainty(many))):
            doubts.append(dict(dims=d, votes=kind, subject=who, **judge_doubt(votes[0], bone[who])))
for kind, rows in (("bend", bends), ("doubt", doubts)):
    for r in rows: run.row(kind, r)

# %% [markdown]
# ## Artefacts

# %%
scores = dict(mae_hu="MAE, HU", bone_dice="Dice of bone", surface_mm="bone surface error, mm", jitter_hu="jitter between slices, HU", flicker_hu="flicker of slices, HU", mask_excess="mask taken back, excess")
band = {k: bands(table, "dims", k) for k in scores} | dict(bend_agreement=bands(bends, "dims", "bend_agreement"))
answers = judge([q for k in scores for q in ask(table, "dims", k)] + ask(bends, "dims", "bend_agreement"))
for a in answers: run.row("answer", a)
every = scores | dict(bend_agreement="agreement of bends")
word = {k: "resolved" if any(a["word"] == "resolved" for a in answers if a["score"] == k) else "unresolved" for k in every}
says = {k: "; ".join(a["says"] for a in answers if a["score"] == k and a["word"] == word[k]) or "there is nothing to compare it with" for k in every}
fig = Figure(figsize=(9, 4.6), layout="constrained")
for ax, (k, label) in zip(fig.subplots(2, 3).flat, scores.items()):
    for i, d in enumerate(kinds):
        ax.plot([i]*2, band[k][d][::2], color="0.7", lw=5, zorder=0)
        ax.scatter([i]*len(seconds), [np.nanmean([r[k] for r in table if (r["dims"], r["seed"]) == (d, s)]) if e == d else np.nan for e, s in config.trainings], s=14)
    ax.set_xticks(range(len(kinds)), [f"{d:g}-D" for d in kinds]); ax.set_title(f"{label}\n{word[k]}", fontsize=8)
run.figure(fig, "bands", f"Each dot is a training of {steps} updates, averaged over {len(scans)} phantoms never seen; the bar is the 95 % interval of the mean over trainings and people.")
who = next(iter(scans)); x = bone[who].sum((1, 2)).argmax()
shown = {"MR": scans[who], **{f"{d:g}-D, seed {s}": made[d, s, who] for d, s in config.trainings if s == config.trainings[0][1]}, "measured CT": truth[who][0]}
fig = Figure(figsize=(9, 6.4), layout="constrained")
for row, cut in zip(fig.subplots(2, len(shown)), (lambda v: v[x], lambda v: v[:, int(bone[who].sum((0, 2)).argmax())])):
    for ax, (label, v) in zip(row, shown.items()):
        ax.imshow(cut(v.voxels).T, cmap="gray", origin="lower", **({} if label == "MR" else dict(vmin=-200, vmax=600))); ax.set_axis_off(); ax.set_title(label, fontsize=8)
run.figure(fig, "cuts", f"{who}: MR, made CTs and measured CT, cut from front to back and from side to side. Slices are axial, so misfit between them shows as steps along the height.")
found = {f"{kind} {k}": round(float(np.nanmean([r[k] for r in doubts if r["votes"] == kind])), 3) for kind in ("thresholds", "trainings", "both") for k in ("found", "edge_found", "gain")}
headline = {f"{k} {d:g}-D": round(band[k][d][1], 4) for k in ("jitter_hu", "mae_hu", "bone_dice", "surface_mm") for d in kinds} | {k: word[k] for k in ("jitter_hu", "mae_hu", "bone_dice", "surface_mm")}
sentences = [f"{label}: " + "; ".join(f"{d:g}-D {b[1]:.3g} ({b[0]:.3g} to {b[2]:.3g})" for d, b in band[k].items()) + f". {says[k]}." for k, label in every.items()]
sentences += [f"{a['one']:g}-D and {a['two']:g}-D, {a['says']}." for a in answers if a["score"] == "failed trainings"]
notes = ["All scans are phantoms: nothing here is a claim about patients."] + sentences + ["Doubt of the bone mask, means over dimensions and people: " + ", ".join(f"{k} {v:g}" for k, v in found.items()) + "; chance is 0.5 for found and 0 for gain."]
result = finish_run(run, headline=headline, table=table, cost=dict(updates=steps*len(seconds), training_s=round(sum(seconds.values()), 1)), data="phantom", data_digest=data_digest(train + test), notes=notes + [config.note]*bool(config.note))

# %% [markdown]
# ## Conclusion
#
# What came is in the record, not typed here.

# %%
print(*sentences, sep="\n")
