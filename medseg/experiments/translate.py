# %% [markdown]
# # From MR to CT, unpaired
#
# **Question.** Can a 3-D CycleGAN that never sees an MR and a CT of the same person make a CT from
# an MR that is closer to the person's own CT than the best table from grey value to HU, and bone
# that Otsu can find?
#
# **Prediction, before any run.** On phantoms: bone yes, since marrow, cortex and air share their
# grey values with other tissue and only their place tells them apart; soft tissue hardly, since
# there the table knows all.
#
# Without a manifest this notebook makes its own phantoms and trains for seconds: a smoke run,
# which proves that the path is whole and nothing else.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
# data
manifest = ""  # CSV with subject,image,split,modality,truth; "" makes phantoms
people = 3  # phantoms to train on, of each modality
testers = 2  # phantoms to test on; their CT is hidden from training
validators = 4  # phantoms that the alarm and the pictures look at; made if either is asked for
anatomy = 0  # seed of the phantoms: another one makes other people
weighting = "t2"  # of the phantoms' MR: t1 or t2
extent_mm = "72,72,72"  # of the phantoms, along x, y, z
spacing_mm = 4.0  # voxel size to work at; 0 is that of the scans, if they all have one
ct_range = "-1000,2000"  # HU that become -1 and 1; what lies outside is cut off

# draws
patch = "16"  # voxels a side, or x,y,z
batch = 1  # patches of each modality a step
turn_sd = 0.0  # degrees
noise_sd = 0.0  # in ranges of the scan
flip = True  # mirror left and right
foreground = 0.5  # share of patches around a place inside the body

# generators
generator = "resnet2"  # unet_old, unet_updated or resnetN with N residual blocks
width = 4
norm = "instance"  # instance, batch or none
spectral = False  # spectral norm in the generators
up = "resize"  # or transposed
dims = 3.0  # 3, 2.5 or 2
residual = False  # generators begin near the identity
ema = 0.995  # of the averaged generators; 0 keeps none
mirrored = False  # a made CT is the mean of two answers, one to the mirrored scan

# discriminators
disc_width = 8
disc_layers = 2
disc_norm = "instance"
disc_spectral = False
disc_scales = 1
pool = 50  # past fakes shown to each discriminator
n_critic = 1
n_gen = 1
rest = 1.0  # one that judged more than this share rightly does not move in that step

# losses: weights, 0 leaves one out
adversarial_kind = "least_squares"  # or hinge, logistic
adversarial = 1.0
cycle = 10.0
identity = 5.0
gradient = 0.0
perceptual = 0.0
information = 0.0
shape = 0.0
contrast = 0.0
signed = False  # gradient consistency minds the sign
vgg = ""  # weights of VGG16, a .safetensors file; "" takes a random stand-in
share = 1.0  # of the slices that the perceptual loss looks at

# training
seed = 0
steps = 60
epochs = 0  # if above 0: steps are counted in passes over the larger side
lr = 0.0005
lr_disc = 0.0002
decay_from = 0.5  # share of the steps, or a step (an epoch if epochs are counted)
recompute = False
checkpointing = False
amp = "none"  # or bf16

# what is looked at on the way
save_every = 250  # steps between saved states, from which a stopped run goes on
keep_every = 0  # steps between kept translators; 0 keeps the last
picture_every = 0  # steps between pictures; 0 makes them at the end
alarm_every = 0  # steps between looks for mode collapse; 0 never looks
alarm = "go_on"  # what an alarm does: go_on, stop, or roll_back to the last diverse state

# run
name = ""  # of the run, free text; its page is titled by what it is
threads = 0  # CPU threads; 0 leaves the setting
note = ""  # a sentence for the page
resume = False  # go on in the folder of a stopped run
out = ""  # folder of the run; "" makes runs/translate-<time>

# %%
from dataclasses import asdict, replace
from math import ceil
from pathlib import Path
from time import perf_counter

import numpy as np

# %%
from medseg.collapse.alarm import (
    MIN_INPUTS,
    Monitor,
    MonitorScans,
    alarm_figure,
    new_memory,
    fit_watched,
    centre_crops,
)
from medseg.data.cases import read_scan
from medseg.data.cohort import is_phantom

# %%
from medseg.data.manifest import data_digest, item_names
from medseg.data.split import hold_validation
from medseg.data.manifest import read_manifest, subjects
from medseg.data.split import split_items
from medseg.data.spine_cohort import make_spine_cohort
from medseg.data.unpaired import PatchSampling, unpaired_batches
from medseg.data.scans import load_scan, load_sides, make_scan
from medseg.io.files import InputError
from medseg.io.read import read_volume
from medseg.io.resample import resample_to
from medseg.io.volume import along_z
from medseg.io.write import write_volume

# %%
from medseg.phantoms.vertebra import BONE
from medseg.runs.folder import finish_run
from medseg.runs.page import show_run
from medseg.runs.parameters import PHANTOMS, along_axes, begin_run, frozen, known_to, numbers
from medseg.runs.plan import check_fits
from medseg.segment.metrics import subject_means
from medseg.train.loop import seed_everything
from medseg.translate.baselines import best_bone_dice, best_intensity_map, identity_ct
from medseg.translate.loss_terms import weighted_loss
from medseg.translate.predict import TranslateRecipe, save_translator, translate_scan
from medseg.translate.report import score_figure, translation_figure
from medseg.translate.scores import otsu_bone, onto_made_grid, score_ct, true_ct
from medseg.translate.settings import Settings
from medseg.translate.state import load_state, save_state
from medseg.translate.step import CycleGAN

# %% [markdown]
# ## Config
#
# `Settings` takes what the networks and losses need, `PatchSampling` what the loader needs, and
# the
# rest is checked here.

# %%
config = frozen(globals())
window, size = numbers(config.ct_range), along_axes(config.patch, int)


def check(config):
    counts = config.save_every, config.people, config.testers, config.epochs
    if min(counts[:3]) < 1 or config.epochs < 0:
        raise ValueError(
            "save_every, people and testers must be at least 1 and epochs 0 or more, got"
            f" {', '.join(map(str, counts))}"
        )
    if len(window) != 2 or not window[0] < window[1]:
        raise ValueError(f"ct_range must be two HU, low,high, got {config.ct_range!r}")


check(config)
asked = Settings(**known_to(Settings, config))
check_fits("translate", asdict(config))

# %%
draw = PatchSampling(
    size=size,
    batch=config.batch,
    seed=config.seed,
    turn_sd=config.turn_sd,
    noise_sd=config.noise_sd,
    flip=config.flip,
    foreground=config.foreground,
)
run = begin_run("translate", config)

# %% [markdown]
# ## Run
#
# Data: MR and CT of different people. The CT of a test person lies where the loader refuses to
# read, or in the column `truth`, which is opened after training. What is decided or shown on the
# way looks at validation people: those marked so, or for the alarm some of the training people,
# never at those to test on.

# %%
cohort = Path(config.manifest) if config.manifest else run.folder / "cohort" / "manifest.csv"
if not cohort.exists():
    counts = config.people, config.people, config.testers, config.anatomy
    grid = (config.spacing_mm or 3.0,) * 3
    extent = along_axes(config.extent_mm)
    looked_at = config.validators if config.alarm_every or config.picture_every else 0
    more = dict(weighting=config.weighting, validation=looked_at)
    make_spine_cohort(cohort.parent, *counts, grid, grid, extent, **more)

# %%
items, decides = read_manifest(cohort), ""
train, test = split_items(items, seed=0)
test = [item for item in test if item.modality.upper() == "MR"]
validation = [item for item in items if item.split == "validation"]
if config.alarm_every:
    train, validation, decides = hold_validation(items, train, "MR", MIN_INPUTS)
mr, ct = load_sides(train, config.spacing_mm, window)
phantom, common_mm = is_phantom(cohort), config.spacing_mm or mr[0].spacing

# %% [markdown]
# Where epochs are given, a step is a batch and an epoch a pass over the larger side.

# %%
told = dict(steps=config.steps, decay_from=config.decay_from)
if config.epochs:
    every_pass = ceil(max(len(mr), len(ct)) / config.batch)
    told["steps"] = config.epochs * every_pass
    if config.decay_from > 1:
        told["decay_from"] = config.decay_from * every_pass
settings = replace(asked, **told, spacing=mr[0].spacing)
print(f"to train on: {len(mr)} MR and {len(ct)} CT of {len(subjects(train))} people")
print(f"to test on: {len(test)} MR of {len(subjects(test))}; {settings.steps} steps. {decides}")

# %% [markdown]
# The scans to test on are asked before the training, not after it: an MR that is a CT, or lies
# back to front, is no surprise worth a night.

# %%
for item in test:
    read_scan(item)

# %% [markdown]
# For the alarm: the middles of the validation MR, looked at every few steps, and those of the
# training CT, to know copies by. For the pictures on the way: validation MR, or if there are none
# training MR.

# %%
watch, watched = None, validation[:15]
pictured = [item for item in validation + train if item.modality.upper() == "MR"][:3]
if config.alarm_every:
    seen = [load_scan(item, common_mm).unit() for item in watched]
    cut = centre_crops(seen + [scan.unit() for scan in ct[:30]], size)
    watch = MonitorScans(cut[: len(watched)], cut[len(watched) :], settings.spacing)

# %% [markdown]
# Training: the batch of a step depends on the seed and the step alone, and the state holds all
# else, so a run that was stopped goes on as if nothing had been. What the alarm does is what the
# parameter says; a rolled back training goes on from its last diverse state, on other patches and
# with discriminators half as fast.

# %%
seed_everything(config.seed, config.threads)
state, diverse = run.folder / "state.safetensors", run.folder / "diverse.safetensors"
if config.resume and state.exists():
    model, about = load_state(state)
else:
    model, about = CycleGAN(settings), dict(seconds=0.0)
memory = about.get("monitor") or new_memory()
monitor = Monitor(watch, config.alarm_every, config.alarm, diverse, memory=memory)
if config.resume:
    run.rewind(model.done)
began = perf_counter() - about["seconds"]
recipe = TranslateRecipe(
    kind=settings.generator,
    **known_to(TranslateRecipe, settings),
    patch=size,
    spacing_mm=common_mm,
    ct_range=window,
    mirrored=config.mirrored,
)


# %%
def translated(item):
    return translate_scan(model.translator().eval(), recipe, read_volume(item.image))


def drawn(first, turn):
    "The batches from a step on; a training that was rolled back sees others."
    other = replace(draw, seed=config.seed + 1000 * turn)
    return unpaired_batches(mr, ct, other, settings.steps, first)


def keep_state():
    save_state(state, model, dict(seconds=perf_counter() - began, monitor=monitor.memory))


def keep_translator(file):
    known = dict(run=config.name, seed=config.seed, step=model.done)
    save_translator(run.folder / file, model.translator(), recipe, known)


# %%
def looked(row):
    "After a look for mode collapse."
    run.row("panel", row)
    if row["alarm"]:
        turn = f"_turn_{row['turn']}" if row["turn"] else ""
        run.figure(
            alarm_figure(monitor, row),
            f"alarm_{row['step']:06d}{turn}_seed_{config.seed}",
            f"Alarm after {row['step']} steps, seed {config.seed}: {'; '.join(row['reasons'])}.",
        )
    if row["action"] == "roll_back":
        keep_state()
        run.rewind(model.done)


# %%
def show_progress():
    names = item_names(pictured)
    shown = [
        (name, read_volume(item.image), translated(item)[0], None)
        for name, item in zip(names, pictured)
    ]
    who = "validation" if validation else "training"
    run.figure(
        translation_figure(shown),
        f"step_{model.done:06d}_seed_{config.seed}",
        f"{', '.join(names)} ({who} people) after {model.done} steps, seed {config.seed}.",
    )


# %%
def trained(row):
    "After an update."
    loss = weighted_loss(row, settings)
    run.row("train", dict(row, loss=loss, steps=settings.steps))
    if model.done % config.save_every == 0:
        keep_state()
    if config.keep_every and model.done % config.keep_every == 0:
        keep_translator(f"models/step_{model.done:06d}.safetensors")
    if config.picture_every and model.done % config.picture_every == 0:
        show_progress()


for kind, row in fit_watched(model, drawn, monitor):
    if kind == "panel":
        looked(row)
    else:
        trained(row)
keep_translator("model.safetensors")

# %% [markdown]
# Test: people that were not in training. Each made CT lies on the grid of its own MR and is named
# after the person. Only now are true CTs opened; each is placed by its affine, and scored where
# both show the patient. A true CT that was trained on is not scored.


# %%
def check_unseen(answer):
    seen = make_scan("", answer, "CT", common_mm).voxels
    for scan in ct:
        if np.array_equal(scan.voxels, seen):
            raise ValueError(f"its true CT is the CT of {scan.name}, which was trained on")


def scored(scan, made, answer, regions):
    "Scores of a made CT and of the tables, and the true CT on its grid."
    check_unseen(answer)
    real, mask = onto_made_grid(answer, made)
    bone = np.isin(resample_to(regions, made, labels=True).voxels, BONE) if regions else None
    found = score_ct(made, real, mask, bone)
    table = score_ct(best_intensity_map(scan, real, mask).apply(scan), real, mask, bone)
    found |= {f"map_{key}": table[key] for key in table if key in ("mae_hu", "bone_mae_hu")}
    true_bone = otsu_bone(real.voxels, mask)
    found["map_bone_dice"] = best_bone_dice(scan, real, true_bone, mask)
    found["identity_mae_hu"] = score_ct(identity_ct(scan), real, mask)["mae_hu"]
    return found, real


# %%
def tested(item, name):
    "A row of the table and what is drawn of one person."
    scan, real = read_volume(item.image), None
    made, seam = translated(item)
    write_volume(run.folder / "made" / f"{name}_ct.nii.gz", made)
    row = dict(subject=item.subject, scan=name, seed=config.seed, step=model.done)
    row |= dict(seam=round(seam, 3), slices=along_z(scan)[1], z_mm=along_z(scan)[0])
    row |= dict(low_hu=int(made.voxels.min()), high_hu=int(made.voxels.max()))
    try:
        if answer := true_ct(item, cohort.parent):
            found, real = scored(scan, made, *answer)
            row |= found
    except (InputError, ValueError) as e:
        notes.append(f"{name} is not scored: {e}.")
    return row, (name, scan, made, real)


# %%
table, shown, notes = [], [], [decides] if decides else []
for name_, item in zip(item_names(test), test):
    row, pictures = tested(item, name_)
    run.row("subject", row)
    table.append(row)
    shown.append(pictures)
if len(list((run.folder / "made").iterdir())) != len(table):
    raise RuntimeError(
        f"{run.folder / 'made'} does not hold one made CT for each of {len(table)} test scans"
    )

# %% [markdown]
# ## Artefacts

# %%
caption = "The middle sagittal slice of each test scan,"
caption += f" after {model.done} steps, seed {config.seed}."
run.figure(translation_figure(shown, most=16), f"test_seed_{config.seed}", caption)
known = [row for row in table if "mae_hu" in row]
if known:
    run.figure(
        score_figure(known),
        "scores",
        "Error and bone overlap of each test scan, beside the best table from grey value to HU"
        " that could be made with the answer in hand.",
    )


# %%
def over_people(rows, key):
    "The mean over people; a person's scans are averaged first."
    return round(float(np.mean(list(subject_means(rows, key).values()))), 4)


mean = {}
if known:
    for key in ("mae_hu", "map_mae_hu", "identity_mae_hu", "bone_dice", "map_bone_dice"):
        mean[key] = over_people(known, key)
mean["seam"] = over_people(table, "seam")

# %%
if 0 < len(known) < len(table):
    some = f"{len(known)} of {len(table)} test scans"
    notes.append(f"Scores are means over {some}: those whose CT is known.")
if phantom:
    notes.append(PHANTOMS)
else:
    scans = f"{len(mr)} MR and {len(ct)} CT, tested on {len(test)} MR"
    unknown = " No CT of the test subjects is known, so nothing here is scored."
    notes.append(
        f"Trained on {scans}: this proves plumbing, not accuracy.{'' if known else unknown}"
    )
if settings.perceptual and not settings.vgg:
    notes.append(
        "The perceptual loss used a random stand-in for VGG16: no benefit can be read from it."
    )

# %%
for row in monitor.memory["alarms"]:
    run.row("alarm", row)
    why, did = "; ".join(row["reasons"]), row["action"].replace("_", " ")
    notes.append(f"Alarm after {row['step']} steps: {why}. What was done: {did}.")
if config.note:
    notes.append(config.note)

# %%
nets = model.networks.values()
headline = {key.replace("_", " "): value for key, value in mean.items()}
headline["test subjects"] = len(subjects(test))
finish_run(
    run,
    headline=headline,
    table=table,
    cost=dict(
        updates=model.done,
        volumes=2 * model.done * config.batch,
        wall_s=round(perf_counter() - began, 1),
        parameters=sum(p.numel() for net in nets for p in net.parameters()),
    ),
    data="phantom" if phantom else "real",
    data_digest=data_digest(train + validation + test),
    notes=notes,
    people=dict(train=train, validation=validation, test=test),
    manifest=cohort,
)

# %% [markdown]
# ## Conclusion
#
# What came is in the record, not typed here.

# %%
print(f"{run.folder}: means over {len(subjects(test))} people never seen, {len(test)} scans:")
print(", ".join(f"{key} {value}" for key, value in mean.items()))

# %%
show_run(run)
