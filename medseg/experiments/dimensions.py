# %% [markdown]
# # Two dimensions, two and a half, three
#
# **Question.** The note builds in 3-D because slices that are translated one by one need not fit
# together. Does a CycleGAN that sees volumes make CTs of less jitter between slices, and better
# bone, than one that sees axial slices, or slices with two neighbours on each side, after equally
# many updates on the same phantoms?
#
# **Prediction, before any run.** Jitter: yes, 2-D most, 3-D least, for even with random weights
# they stand in that order. Bone and HU: nothing to be told apart, for trainings so short differ
# more from seed to seed.
#
# Without a manifest this notebook makes its own phantoms and trains for seconds: a smoke run,
# which proves that the path is whole and nothing else.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
# question
dims = "2,2.5,3"  # what is compared
seeds = "0,1,2"  # trainings of each

# data
manifest = ""  # CSV with subject,image,split,modality of a phantom cohort; "" makes one
people = 1  # phantoms to train on, of each modality
testers = 1  # phantoms to test on; their CT is hidden from training
anatomy = 0  # seed of the phantoms
extent_mm = "72,84,66"  # of the phantoms, along x, y, z
spacing_mm = 6.0  # voxel size to work at
ct_range = "-300,900"  # HU that become -1 and 1
patch = "12,12,8"  # voxels along x, y, z

# network, the same for all dims
generator = "resnet1"
width = 2
disc_width = 2
disc_layers = 1

# losses: weights
adversarial = 3.0
cycle = 10.0
identity = 2.0
gradient = 2.0

# training
steps = 2  # updates of each training
lr = 0.001
lr_disc = 0.0002
ema = 0.98
decay_from = 0.5

# run
name = ""  # of the run, free text; its page is titled by what it is
threads = 1  # CPU threads
models = ""  # folder of translators; those there are not trained again; "" is that of the run
note = ""  # a sentence for the page
resume = False  # go on in the folder of a stopped run
out = ""  # folder of the run; "" makes runs/dimensions-<time>

# %%
from dataclasses import asdict
from pathlib import Path
from time import process_time

import numpy as np

from medseg.bone.jitter import bone_jitter, slice_jitter
from medseg.bone.surface import surface_error
from medseg.bone.threshold import bone_mask, bone_uncertainty, patient_mask
from medseg.bone.uncertainty import score_uncertainty
from medseg.collapse.spinal_axis import curvatures
from medseg.data.manifest import data_digest, read_manifest
from medseg.data.split import split_items
from medseg.data.spine_cohort import make_spine_cohort
from medseg.data.unpaired import PatchSampling, unpaired_batches
from medseg.data.scans import load_sides
from medseg.io.files import InputError, to_json
from medseg.io.read import read_volume
from medseg.io.volume import Volume

# %%
from medseg.phantoms.vertebra import BONE
from medseg.runs.folder import finish_run
from medseg.runs.page import show_run
from medseg.runs.parameters import PHANTOMS, begin_run, frozen, known_to, numbers
from medseg.runs.pictures import Tile, band_figure, tile_figure
from medseg.segment.metrics import dice_score
from medseg.train.checkpoint import load_checkpoint
from medseg.train.loop import seed_everything
from medseg.train.statistics import all_pair_questions, group_intervals, answer_questions
from medseg.translate.predict import TranslateRecipe, load_translator
from medseg.translate.predict import save_translator, translate_scan
from medseg.translate.scores import hidden_ct, masked_mae
from medseg.translate.settings import Settings
from medseg.translate.step import CycleGAN, fit_cyclegan

# %% [markdown]
# ## Config
#
# `Settings` checks what the networks and losses are told; the rest is checked here.

# %%
config = frozen(globals())
window, size = numbers(config.ct_range), numbers(config.patch, int)


def check(config):
    if min(config.people, config.testers) < 1 or not config.spacing_mm > 0:
        found = f"{config.people}, {config.testers} and {config.spacing_mm}"
        raise ValueError(
            f"people and testers must be at least 1 and spacing_mm above 0, got {found}"
        )
    if len(config.seeds.split(",")) < 3:
        found = repr(config.seeds)
        raise ValueError(
            f"seeds must be three or more: with fewer nothing is resolved, got {found}"
        )


check(config)

# %%
at = (config.spacing_mm,) * 3
trainings = [(d, s) for s in numbers(config.seeds, int) for d in numbers(config.dims)]
told = known_to(Settings, config) | dict(spacing=at)
asked = {(d, s): Settings(**told | dict(dims=d, seed=s)) for d, s in trainings}
run = begin_run("dimensions", config)
if config.resume:
    run.rewind(0)

# %% [markdown]
# ## Run
#
# One cohort for all. The batch of a step depends on the seed and the step alone, so the three
# kinds of a seed see the same patches in the same order.

# %%
cohort = Path(config.manifest) if config.manifest else run.folder / "cohort" / "manifest.csv"
if not cohort.exists():
    counts = config.people, config.people, config.testers, config.anatomy
    make_spine_cohort(cohort.parent, *counts, at, at, numbers(config.extent_mm))
train, test = split_items(read_manifest(cohort), seed=0)
test = [item for item in test if item.modality == "MR"]
mr, ct = load_sides(train, config.spacing_mm, window)


def kept(dims, seed):
    folder = Path(config.models or run.folder / "models")
    return folder / f"dims_{dims:g}_seed_{seed}.safetensors"


# %%
def train_one(settings, draw, path):
    "Train one translator and keep it, with all that it was told."
    seed_everything(settings.seed, config.threads)
    began, model = process_time(), CycleGAN(settings)
    for _ in fit_cyclegan(model, unpaired_batches(mr, ct, draw, settings.steps)):
        pass
    recipe = TranslateRecipe(
        kind=settings.generator,
        **known_to(TranslateRecipe, settings),
        patch=size,
        spacing_mm=config.spacing_mm,
        ct_range=window,
        mirrored=True,
    )
    about = dict(run="dimensions", seed=settings.seed, step=model.done)
    about |= dict(settings=asdict(settings), draw=asdict(draw))
    about["seconds"] = round(process_time() - began, 1)
    save_translator(path, model.translator(), recipe, about)


# %% [markdown]
# A translator that is there already is taken if it was told the same, and refused if not.


# %%
def refuse_another(path, about, settings, draw):
    for part, value in (("settings", settings), ("draw", draw)):
        for key, wanted in to_json(asdict(value)).items():
            if about[part][key] != wanted:
                needs = "the settings of this run"
                do = "name an empty folder"
                raise InputError("models_differ", path, key, "another value", needs, do)


def trained(dims, seed):
    "Train and keep one translator, or find it; the seconds that it took."
    draw = PatchSampling(size, 1, seed, flip=True, foreground=0.5)
    path = kept(dims, seed)
    if not path.exists():
        train_one(asked[dims, seed], draw, path)
    _, about = load_checkpoint(path)
    refuse_another(path, about, asked[dims, seed], draw)
    return about["seconds"]


# %%
seconds = {}
for d, s in trainings:
    took = seconds[d, s] = trained(d, s)
    run.row("training", dict(dims=d, seed=s, steps=config.steps, seconds=took))
    print(f"{d:g} dimensions, seed {s}: {config.steps} updates in {took} s of one core")

# %% [markdown]
# Test: people that were not in training. HU where the patient is, bone by Otsu against the true
# bone, and what changes from slice to slice beyond what the measured CT does.

# %%
scans = {item.subject: read_volume(item.image) for item in test}
truth = {who: hidden_ct(cohort.parent, who) for who in scans}
body = {who: patient_mask(real) for who, (real, _) in truth.items()}
bone = {who: np.isin(regions.voxels, BONE) for who, (_, regions) in truth.items()}


def surface_mm(mask, who):
    if not mask.voxels.any():
        return float("nan")
    real = Volume(bone[who], mask.affine)
    return surface_error(mask, real, n=4000, step_mm=2.0)["assd_mm"]


# %%
def scored(fake, who):
    "What a made CT is worth."
    real, _ = truth[who]
    mask, real_mask = (bone_mask(ct, body=body[who])[0] for ct in (fake, real))
    flat, ragged = slice_jitter(fake, real, body[who]), bone_jitter(mask, real_mask)
    return dict(
        mae_hu=masked_mae(fake.voxels, real.voxels, body[who]),
        bone_dice=dice_score(mask.voxels > 0, bone[who]),
        surface_mm=surface_mm(mask, who),
        jitter_hu=flat["jitter_hu"],
        ratio=flat["ratio"],
        own_ratio=flat["own_ratio"],
        flicker_hu=flat["flicker_hu"],
        mask_excess=ragged["excess"],
        own_excess=ragged["own_excess"],
    )


# %%
made, table = {}, []
for d, s in trainings:
    for who, scan in scans.items():
        fake, _ = translate_scan(*load_translator(kept(d, s)), scan)
        made[d, s, who] = fake
        table.append(dict(dims=d, seed=s, subject=who, **scored(fake, who)))
        run.row("subject", table[-1])

# %% [markdown]
# Of the people together: whether columns bend as their MR says. And of the trainings together:
# whether their votes, and those of thresholds, doubt the bone where it is wrong.

# %%
kinds, bends, doubts = sorted({d for d, _ in trainings}), [], []
every_ct = np.stack([truth[who][0].voxels for who in scans])
for d, s in trainings:
    fakes = np.stack([made[d, s, who].voxels for who in scans])
    agreement = curvatures(every_ct, fakes, at)["agreement"]
    bends.append(dict(dims=d, seed=s, bend_agreement=agreement))
    run.row("bend", bends[-1])
for d in kinds:
    for who in scans:
        many = [made[d, s, who] for e, s in trainings if e == d]
        votes = dict(
            thresholds=bone_uncertainty(many[0]),
            trainings=bone_uncertainty(many, sweep=(0,)),
            both=bone_uncertainty(many),
        )
        for kind, (share, *_) in votes.items():
            doubt = score_uncertainty(share, bone[who])
            doubts.append(dict(dims=d, votes=kind, subject=who, **doubt))
            run.row("doubt", doubts[-1])

# %% [markdown]
# ## Artefacts

# %%
scores = dict(
    mae_hu="MAE, HU",
    bone_dice="Dice of bone",
    surface_mm="bone surface error, mm",
    jitter_hu="jitter between slices, HU",
    flicker_hu="flicker of slices, HU",
    mask_excess="mask taken back, excess",
)
every = scores | dict(bend_agreement="agreement of bends")
rows_of = dict.fromkeys(scores, table) | dict(bend_agreement=bends)
band = {score: group_intervals(rows, "dims", score) for score, rows in rows_of.items()}
questions = []
for score, rows in rows_of.items():
    questions += all_pair_questions(rows, "dims", score)
answers = answer_questions(questions)
for answer in answers:
    run.row("answer", answer)

# %%
word, says = {}, {}
for score in every:
    mine = [answer for answer in answers if answer["score"] == score]
    resolved = any(answer["word"] == "resolved" for answer in mine)
    word[score] = "resolved" if resolved else "unresolved"
    lines = [answer["says"] for answer in mine if answer["word"] == word[score]]
    says[score] = "; ".join(lines) or "there is nothing to compare it with"


# %%
def dots_of(score):
    "The mean of each training, by its dimensions."
    found = {f"{d:g}-D": [] for d in kinds}
    for d, s in trainings:
        values = [row[score] for row in table if (row["dims"], row["seed"]) == (d, s)]
        found[f"{d:g}-D"].append(np.nanmean(values))
    return found


panels, dots = {}, {}
for score, label in scores.items():
    title = f"{label}\n{word[score]}"
    panels[title] = {f"{d:g}-D": band[score][d] for d in kinds}
    dots[title] = dots_of(score)
run.figure(
    band_figure(panels, dots, across=3),
    "bands",
    f"Each dot is a training of {config.steps} updates, averaged over {len(scans)} phantoms never"
    " seen; the bar is the 95 % interval of the mean over trainings and people.",
)

# %%
who, (_, first) = next(iter(scans)), trainings[0]
x, y = bone[who].sum((1, 2)).argmax(), bone[who].sum((0, 2)).argmax()
shown = {"MR": scans[who]}
shown |= {f"{d:g}-D, seed {s}": made[d, s, who] for d, s in trainings if s == first}
shown["measured CT"] = truth[who][0]
windows = {title: None if title == "MR" else (-200, 600) for title in shown}
front = [Tile(v.voxels[x], title, windows[title]) for title, v in shown.items()]
side = [Tile(v.voxels[:, y], title, windows[title]) for title, v in shown.items()]
run.figure(
    tile_figure([front, side]),
    "cuts",
    f"{who}: MR, made CTs and measured CT, cut from front to back and from side to side. Slices are"
    " axial, so misfit between them shows as steps along the height.",
)

# %%
headlines = ("jitter_hu", "mae_hu", "bone_dice", "surface_mm")
headline = {f"{k} {d:g}-D": round(band[k][d][1], 4) for k in headlines for d in kinds}
headline |= {k: word[k] for k in headlines}
sentences = []
for score, label in every.items():
    ranges = [f"{d:g}-D {m:.3g} ({a:.3g} to {b:.3g})" for d, (a, m, b) in band[score].items()]
    sentences.append(f"{label}: {'; '.join(ranges)}. {says[score]}.")
for answer in answers:
    if answer["score"] == "failed trainings":
        pair = f"{answer['one']:g}-D and {answer['two']:g}-D"
        sentences.append(f"{pair}, {answer['says']}.")

# %%
found = []
for kind in ("thresholds", "trainings", "both"):
    for key in ("found", "edge_found", "gain"):
        values = [row[key] for row in doubts if row["votes"] == kind]
        found.append(f"{kind} {key} {round(float(np.nanmean(values)), 3):g}")
notes = [PHANTOMS, *sentences]
notes.append(
    f"Doubt of the bone mask, means over dimensions and people: {', '.join(found)}; chance is 0.5"
    " for found and 0 for gain."
)
if config.note:
    notes.append(config.note)

# %%
total = round(sum(seconds.values()), 1)
finish_run(
    run,
    headline=headline,
    table=table,
    cost=dict(updates=config.steps * len(seconds), training_s=total),
    data="phantom",
    data_digest=data_digest(train + test),
    notes=notes,
    people=dict(train=train, test=test),
    manifest=cohort,
)

# %% [markdown]
# ## Conclusion
#
# What came is in the record, not typed here.

# %%
print(*sentences, sep="\n")

# %%
show_run(run)
