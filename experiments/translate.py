# %% [markdown]
# # From MR to CT, unpaired
#
# **Question.** Can a 3-D CycleGAN that never sees an MR and a CT of the same person make a CT from an MR that is closer to
# the person's own CT than the best table from grey value to HU, and bone that Otsu can find?
#
# **Prediction, before any run.** On phantoms: bone yes, since marrow, cortex and air share their grey values with other tissue and only
# their place tells them apart; soft tissue hardly, since there the table knows all.
#
# Without a manifest this notebook makes its own phantoms and trains for seconds: a smoke run, which proves that the path is
# whole and nothing else.

# %% tags=["parameters"]
name = "smoke"          # of the run, free text
manifest = ""           # CSV with subject,image,split,modality,truth; "" makes phantoms
people = 3              # phantoms to train on, of each modality
testers = 2             # phantoms to test on; their CT is hidden from training
validators = 4          # phantoms that the alarm and the pictures on the way look at; made if either is asked for
anatomy = 0             # seed of the phantoms: another one makes other people
weighting = "t2"        # of the phantoms' MR: t1 or t2
extent_mm = "72,72,72"  # of the phantoms, along x, y, z
spacing_mm = 4.0        # voxel size to work at; 0 is that of the scans, if they all have one
ct_range = "-1000,2000" # HU that become -1 and 1; what lies outside is cut off
patch = "16"            # voxels a side, or x,y,z
batch = 1               # patches of each modality a step
steps = 60
epochs = 0              # if above 0: steps are counted in passes over the larger side
seed = 0
generator = "resnet2"   # unet_old, unet_updated or resnetN with N residual blocks
width = 4
norm = "instance"       # instance, batch or none
spectral = False        # spectral norm in the generators
up = "resize"           # or transposed
dims = 3.0              # 3, 2.5 or 2
residual = False        # generators begin near the identity
disc_width = 8
disc_layers = 2
disc_norm = "instance"
disc_spectral = False
disc_scales = 1
adversarial_kind = "least_squares"  # or hinge, logistic
adversarial = 1.0       # weights of the losses; 0 leaves one out
cycle = 10.0
identity = 5.0
gradient = 0.0
perceptual = 0.0
information = 0.0
shape = 0.0
contrast = 0.0
signed = False          # gradient consistency minds the sign
vgg = ""                # weights of VGG16, a .safetensors file; "" takes a random stand-in
share = 1.0             # of the slices that the perceptual loss looks at
n_critic = 1
n_gen = 1
rest = 1.0              # a discriminator that judged more than this share rightly does not move in that step
lr = 0.0005
lr_disc = 0.0002
decay_from = 0.5        # share of the steps, or a step (an epoch if epochs are counted)
ema = 0.995             # of the averaged generators; 0 keeps none
pool = 50               # past fakes shown to each discriminator
recompute = False
checkpointing = False
amp = "none"            # or bf16
turn_sd = 0.0           # degrees
noise_sd = 0.0          # in ranges of the scan
flip = True             # mirror left and right
foreground = 0.5        # share of patches around a place inside the body
threads = 0             # CPU threads; 0 leaves the setting
save_every = 250        # steps between saved states, from which a stopped run goes on
mirrored = False        # a made CT is the mean of two answers, one to the mirrored scan
keep_every = 0          # steps between kept translators; 0 keeps the last
picture_every = 0       # steps between pictures; 0 makes them at the end
alarm_every = 0         # steps between looks for mode collapse; 0 never looks
alarm = "go_on"         # what an alarm does: go_on, stop, or roll_back to the last diverse state
note = ""               # a sentence for the page
resume = False          # go on in the folder of a stopped run
out = ""                # folder of the run; "" makes runs/translate-<time>

# %%
from dataclasses import asdict, dataclass, fields, replace
from math import ceil
from pathlib import Path
from time import perf_counter

import numpy as np

from medseg.data.cohort import is_phantom
from medseg.data.manifest import data_digest, hold_validation, item_names, read_manifest, split_items, subjects
from medseg.data.datasets import read_scan
from medseg.data.spinecohort import make_spine_cohort
from medseg.data.unpaired import PatchDraw, load_scan, load_sides, make_scan, unpaired_batches
from medseg.log.runs import finish_run, resume_run, start_run
from medseg.train.loop import seed_everything
from medseg.translate.alarm import FEWEST, Monitor, Watch, alarm_figure, blank, fit_watched, middles
from medseg.translate.baselines import best_bone_dice, best_intensity_map, identity_ct
from medseg.translate.predict import TranslateRecipe, save_translator, translate_scan
from medseg.translate.report import score_figure, translation_figure
from medseg.translate.scores import otsu_bone, placed, score_ct, true_ct
from medseg.translate.settings import Settings
from medseg.translate.state import load_state, save_state
from medseg.translate.step import CycleGAN
from medseg.translate.terms import weight_of
from medseg.volumes.files import InputError
from medseg.volumes.read import read_volume
from medseg.volumes.resample import resample_to
from medseg.volumes.vertebra import BONE
from medseg.volumes.write import write_volume

# %% [markdown]
# ## Config
#
# `Settings` takes what the networks and losses need, `PatchDraw` what the loader needs, and the rest is checked here.


# %%
@dataclass(frozen=True)
class Config:
    name: str; manifest: str; people: int; testers: int; validators: int; anatomy: int; weighting: str; extent_mm: str; spacing_mm: float; ct_range: str; patch: str; batch: int; epochs: int
    turn_sd: float; noise_sd: float; flip: bool; foreground: float; threads: int; save_every: int; mirrored: bool; keep_every: int; picture_every: int; alarm_every: int; alarm: str; note: str

    def __post_init__(self):
        if self.save_every < 1 or self.epochs < 0 or min(self.people, self.testers) < 1: raise ValueError(f"save_every, people and testers must be at least 1 and epochs 0 or more, got {self.save_every}, {self.people}, {self.testers}, {self.epochs}")

        if len(self.window) != 2 or not self.window[0] < self.window[1]: raise ValueError(f"ct_range must be two HU, low,high, got {self.ct_range!r}")

    @property
    def size(self): return three(self.patch, int)
    @property
    def window(self): return tuple(map(float, self.ct_range.split(",")))
    @property
    def draw(self): return PatchDraw(self.size, self.batch, seed, self.turn_sd, self.noise_sd, flip=self.flip, foreground=self.foreground)


def three(text, kind): return (tuple(map(kind, text.split(","))) if "," in text else (kind(text),)*3)


config = Config(**{f.name: globals()[f.name] for f in fields(Config)})
given = {f.name: globals()[f.name] for f in fields(Settings) if f.name in globals()}
draw, asked = config.draw, Settings(**given)
run = (resume_run if resume else start_run)("translate", asdict(config) | given, out)

# %% [markdown]
# ## Run
#
# Data: MR and CT of different people. The CT of a test person lies where the loader refuses to read, or in the column `truth`, which is opened after training.
# What is decided or shown on the way looks at validation people: those marked so, or for the alarm some of the training people, never at those to test on.

# %%
cohort = Path(config.manifest) if config.manifest else run.folder/"cohort"/"manifest.csv"
if not cohort.exists(): make_spine_cohort(cohort.parent, config.people, config.people, config.testers, config.anatomy, (config.spacing_mm or 3.,)*3, (config.spacing_mm or 3.,)*3, three(config.extent_mm, float), config.weighting,
                                           validation=config.validators if config.alarm_every or config.picture_every else 0)
items = read_manifest(cohort)
train, test = split_items(items, seed=0)
test = [item for item in test if item.modality.upper() == "MR"]
train, validation, decides = hold_validation(items, train, "MR", FEWEST) if config.alarm_every else (train, [item for item in items if item.split == "validation"], "")
mr, ct = load_sides(train, config.spacing_mm, config.window)
phantom, common_mm = is_phantom(cohort), config.spacing_mm or mr[0].spacing
every_pass = ceil(max(len(mr), len(ct))/config.batch)
steps = config.epochs*every_pass if config.epochs else steps
decay_from = decay_from*every_pass if config.epochs and decay_from > 1 else decay_from
settings = Settings(**given | dict(steps=steps, decay_from=decay_from, spacing=mr[0].spacing))
print(f"{len(mr)} MR and {len(ct)} CT of {len(subjects(train))} people to train on, {len(test)} MR of {len(subjects(test))} to test on, {steps} steps. {decides}")

# %% [markdown]
# The scans to test on are asked before the training, not after it: an MR that is a CT, or lies back to front, is no surprise worth a night.

# %%
for item in test: read_scan(item)

# %% [markdown]
# For the alarm: the middles of the validation MR, looked at every few steps, and those of the training CT, to know copies by. For the pictures on the way: validation MR, or if there are none training MR.

# %%
watch, shown_mr = None, validation[:15]
pictured = [item for item in validation + train if item.modality.upper() == "MR"][:3]
if config.alarm_every:
    cut = middles([load_scan(item, common_mm).unit() for item in shown_mr] + [s.unit() for s in ct[:30]], config.size)
    watch = Watch(cut[:len(shown_mr)], cut[len(shown_mr):], settings.spacing)

# %% [markdown]
# Training: the batch of a step depends on the seed and the step alone, and the state holds all else, so a run that was stopped
# goes on as if nothing had been. What the alarm does is what the parameter says; a rolled back training goes on from its last
# diverse state, on other patches and with discriminators half as fast.

# %%
seed_everything(seed, config.threads)
state = run.folder/"state.safetensors"
model, about = load_state(state) if resume and state.exists() else (CycleGAN(settings), dict(seconds=0.))
monitor = Monitor(watch, config.alarm_every, config.alarm, run.folder/"diverse.safetensors", memory=about.get("monitor") or blank())
if resume: run.rewind(model.done)
began = perf_counter() - about["seconds"]
recipe = TranslateRecipe(generator, width, norm, spectral, up, dims, residual, "mr2ct", config.size, spacing_mm=common_mm, ct_range=config.window, mirrored=config.mirrored)


def translated(item): return translate_scan(model.translator().eval(), recipe, read_volume(item.image))


def keep_state(): save_state(state, model, dict(seconds=perf_counter() - began, monitor=monitor.memory))


for kind, row in fit_watched(model, lambda first, turn: unpaired_batches(mr, ct, replace(draw, seed=seed + 1000*turn), steps, first), monitor):
    if kind == "panel":
        run.row("panel", row)
        if row["alarm"]: run.figure(alarm_figure(monitor, row), f"alarm_{row['step']:06d}" + f"_turn_{row['turn']}"*(row["turn"] > 0) + f"_seed_{seed}", f"Alarm after {row['step']} steps, seed {seed}: {'; '.join(row['reasons'])}.")
        if row["action"] == "roll_back": keep_state(); run.rewind(model.done)
        continue
    loss = sum(weight_of(k, settings)*v for k, v in row.items() if k.split("_")[0] in settings.weights)
    run.row("train", dict(row, loss=loss, steps=steps))
    if model.done % config.save_every == 0: keep_state()
    if config.keep_every and model.done % config.keep_every == 0: save_translator(run.folder/"models"/f"step_{model.done:06d}.safetensors", model.translator(), recipe, dict(run=config.name, seed=seed, step=model.done))
    if config.picture_every and model.done % config.picture_every == 0:
        shown = [(name, read_volume(item.image), translated(item)[0], None) for name, item in zip(item_names(pictured), pictured)]
        run.figure(translation_figure(shown), f"step_{model.done:06d}_seed_{seed}", f"{', '.join(name for name, *_ in shown)} ({'validation' if validation else 'training'} people) after {model.done} steps, seed {seed}.")
save_translator(run.folder/"model.safetensors", model.translator(), recipe, dict(run=config.name, seed=seed, step=model.done))

# %% [markdown]
# Test: people that were not in training. Each made CT lies on the grid of its own MR and is named after the person. Only now are true CTs opened; each is placed by its affine, and scored where both show the patient.

# %%
def scored(scan, made, answer): # the scores, and the true CT on the grid of the made one
    seen = make_scan("", answer[0], "CT", common_mm).voxels
    if twin := next((s.name for s in ct if np.array_equal(s.voxels, seen)), ""): raise ValueError(f"its true CT is the CT of {twin}, which was trained on")
    real, mask = placed(answer[0], made)
    bone = np.isin(resample_to(answer[1], made, labels=True).voxels, BONE) if answer[1] else None
    found, table_ct = score_ct(made, real, mask, bone), best_intensity_map(scan, real, mask).apply(scan)
    found |= {f"map_{k}": v for k, v in score_ct(table_ct, real, mask, bone).items() if k in ("mae_hu", "bone_mae_hu")}
    return found | dict(map_bone_dice=best_bone_dice(scan, real, otsu_bone(real.voxels, mask), mask), identity_mae_hu=score_ct(identity_ct(scan), real, mask)["mae_hu"]), real


table, shown, notes = [], [], []
for name, item in zip(item_names(test), test):
    scan, real = read_volume(item.image), None
    made, seam = translated(item)
    write_volume(run.folder/"made"/f"{name}_ct.nii.gz", made)
    table.append(dict(subject=name, seed=seed, step=model.done, seam=round(seam, 3), low_hu=int(made.voxels.min()), high_hu=int(made.voxels.max())))
    try:
        if answer := true_ct(item, cohort.parent): found, real = scored(scan, made, answer); table[-1] |= found
    except (InputError, ValueError) as e: notes.append(f"{name} is not scored: {e}.")
    run.row("subject", table[-1])
    shown.append((name, scan, made, real))
if len(list((run.folder/"made").iterdir())) != len(table): raise RuntimeError(f"{run.folder/'made'} does not hold one made CT for each of {len(table)} test scans")

# %% [markdown]
# ## Artefacts

# %%
run.figure(translation_figure(shown, most=16), f"test_seed_{seed}", f"The middle sagittal slice of each test subject, after {model.done} steps, seed {seed}.")
known = [r for r in table if "mae_hu" in r]
if known: run.figure(score_figure(known), "scores", "Error and bone overlap of each test subject, beside the best table from grey value to HU that could be made with the answer in hand.")
mean = {k: round(float(np.nanmean([r[k] for r in known])), 4) for k in ("mae_hu", "map_mae_hu", "identity_mae_hu", "bone_dice", "map_bone_dice") if known} | dict(seam=round(float(np.mean([r["seam"] for r in table])), 4))
notes = [decides]*bool(decides) + notes + ([f"Scores are means over {len(known)} of {len(table)} test scans: those whose CT is known."] if 0 < len(known) < len(table) else [])
notes += ["All scans are phantoms: nothing here is a claim about patients."] if phantom else [
    f"Trained on {len(mr)} MR and {len(ct)} CT, tested on {len(test)} MR: this proves plumbing, not accuracy." + ("" if known else " No CT of the test subjects is known, so nothing here is scored.")]
if settings.perceptual and not settings.vgg: notes.append("The perceptual loss used a random stand-in for VGG16: no benefit can be read from it.")
for a in monitor.memory["alarms"]:
    run.row("alarm", a)
    notes.append(f"Alarm after {a['step']} steps: {'; '.join(a['reasons'])}. What was done: {a['action'].replace('_', ' ')}.")
result = finish_run(run, headline={k.replace("_", " "): v for k, v in mean.items()} | {"test subjects": len(subjects(test))}, table=table,
                    cost=dict(updates=model.done, volumes=2*model.done*config.batch, wall_s=round(perf_counter() - began, 1), parameters=sum(p.numel() for net in model.networks.values() for p in net.parameters())),
                    data="phantom" if phantom else "real", data_digest=data_digest(train + validation + test), notes=notes + [config.note]*bool(config.note))

# %% [markdown]
# ## Conclusion
#
# What came is in the record, not typed here.

# %%
print(f"{run.folder}: means over {len(test)} subjects never seen:", ", ".join(f"{k} {v}" for k, v in mean.items()))
