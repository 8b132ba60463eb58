# %% [markdown]
# # Segmentation from slabs
#
# **Question.** Can a 2-D network that sees a slab of slices find the liver in subjects it has
# never seen, whatever their z spacing?
#
# **Prediction, before any run.** On phantoms: yes, with a mean Dice of at least 0.90 after a few
# hundred steps, and with the thickest slices worst, since there a neighbour is 8 mm away.
#
# Without a manifest this notebook makes its own phantoms and trains for seconds: a smoke run,
# which proves that the path from scan to mask to record is whole and nothing else.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
# data
manifest = ""  # CSV with subject,image,label; "" makes phantoms
label_values = "1+2"  # label values of class 1, 2, …; + merges (phantoms: 1 liver, 2 lesion)
class_names = "liver"  # of class 1, 2, …
hold_out = ""  # subjects to test on, by comma; "" takes the manifest's split, or draws
inplane_mm = 6.0  # pixel size to train at; 0 is native; z is never resampled
level = 60.0  # of the HU window
window = 400.0  # its width, HU
cache = ""  # folder that keeps prepared scans; "" keeps none

# network
depth = 3  # slices a slab
target = "middle"  # slices that a slab predicts: all or middle
attention = "both"  # none, channel, spatial or both, after each block
width = 8  # channels of the first level
levels = 3  # of the U-Net
largest = ""  # classes that keep only their largest parts, as many as in training; "" keeps all

# training
seed = 0
steps = 30
batch = 8  # slabs a step
lr = 0.003
crop = 64  # pixels a side
foreground = 0.6  # share of slabs drawn for a class
augmented = True  # rotate, scale, re-light

# run
name = "smoke"  # of the run, free text
threads = 0  # CPU threads; 0 leaves the setting
note = ""  # a sentence for the page
out = ""  # folder of the run; "" makes runs/segment-<time>

# %%
from dataclasses import replace
from pathlib import Path

from medseg.data.augment import augmented as changed
from medseg.data.cache import kept_case
from medseg.data.cases import SlabSampling, slab_batches, load_case, read_channels, read_labels
from medseg.data.cases import read_scan
from medseg.data.cohort import is_phantom, make_cohort
from medseg.data.manifest import data_digest, item_name, parse_label_values
from medseg.data.manifest import read_manifest, subjects
from medseg.data.split import split_items
from medseg.io.write import write_labels
from medseg.runs.folder import finish_run
from medseg.runs.parameters import PHANTOMS, begin_run, frozen, words
from medseg.segment.losses import dice_ce
from medseg.segment.metrics import class_means
from medseg.segment.predict import SegmentRecipe, keep_largest, predict, save_model
from medseg.segment.predict import with_modality, usual_components
from medseg.segment.report import best_slice, dice_figure, mark_empty, overlay_figure, score_rows
from medseg.train.loop import fit, seed_everything

# %% [markdown]
# ## Config
#
# All parameters in one frozen value. The parts check themselves: `SlabSampling` how slabs are
# drawn,
# `SegmentRecipe` the network; the rest is checked here.

# %%
config = frozen(globals())
groups = parse_label_values(config.label_values)
recipe = SegmentRecipe(
    depth=config.depth,
    target=config.target,
    classes=len(groups) + 1,
    attention=config.attention,
    width=config.width,
    levels=config.levels,
    inplane_mm=config.inplane_mm,
    level=config.level,
    window=config.window,
    names=tuple(name.strip() for name in config.class_names.split(",")),
)


# %%
def check(config):
    if config.steps < 1 or not 0 < config.lr < 1:
        found = f"{config.steps} and {config.lr}"
        raise ValueError(f"steps must be at least 1 and lr in 0..1, got {found}")
    if unknown := set(words(config.largest)) - set(recipe.names):
        raise ValueError(f"largest must name classes of {recipe.names}, got {sorted(unknown)}")


check(config)
draw = SlabSampling(
    depth=config.depth,
    target=config.target,
    crop=(config.crop, config.crop),
    batch=config.batch,
    foreground=config.foreground,
    level=config.level,
    width=config.window,
    seed=config.seed,
)

# %%
run = begin_run("segment", config)

# %% [markdown]
# ## Run
#
# Data: read, checked as pairs, split by subject.

# %%
if config.manifest:
    cohort = Path(config.manifest)
else:
    cohort = make_cohort(run.folder / "cohort", 3, 2, inplane_mm=6.0, spacings=(4.0, 8.0))
train, test = split_items(read_manifest(cohort), words(config.hold_out), seed=config.seed)


def prepared(item):
    if config.cache:
        return kept_case(item, groups, config.inplane_mm, config.cache)
    return load_case(item, groups, config.inplane_mm)


cases = [prepared(item) for item in train]
print(f"to train on: {len(train)} scans of {len(subjects(train))} subjects")
print(f"to test on: {len(test)} scans of {len(subjects(test))} subjects")

# %% [markdown]
# How many parts a class has, its labels say; only a class that `largest` names is cut down to so
# many.

# %%
parts = dict(zip(recipe.names, usual_components([case.classes for case in cases], recipe.classes)))
trimmed = words(config.largest)
recipe = replace(recipe, largest=tuple(parts[c] if c in trimmed else 0 for c in recipe.names))
print("most parts of a class in one training scan:", parts)

# %% [markdown]
# Training: the batch of a step depends on the seed and the step alone.

# %%
seed_everything(config.seed, config.threads)
net = recipe.net()
slabs = slab_batches(cases, draw, config.steps)
if config.augmented:
    slabs = changed(slabs, config.seed)
for row in fit(net, slabs, dice_ce, config.steps, config.lr):
    run.row("train", dict(row, steps=config.steps))

# %%
trained = with_modality(recipe, [item.modality for item in train])
about = dict(run=config.name, seed=config.seed, step=config.steps)
save_model(run.folder / "model.safetensors", net.eval(), trained, about)

# %% [markdown]
# Test: subjects that were not in training. The mask is written on the scan's own grid.

# %%
table, shown = [], []
for item in test:
    scan = read_scan(item)
    labels = read_labels(item, scan, groups)
    mask, dropped = keep_largest(predict(net, trained, read_channels(item)), recipe.largest)
    write_labels(run.folder / "masks" / f"{item_name(item, test)}.nii.gz", mask)
    rows = score_rows(item.subject, item_name(item, test), mask, labels, recipe.names, {})
    for row, less in zip(rows, dropped):
        row["dropped_ml"] = less
        run.row("subject", row)
    table += rows
    shown.append((item_name(item, test), *best_slice(scan, mask, labels)))
failed = mark_empty(table)

# %% [markdown]
# ## Artefacts

# %%
caption = "The fullest slice of each test scan: labels as areas, predictions as lines."
run.figure(overlay_figure(shown, recipe.names), "masks", caption)
caption = "Dice of each test scan against its z spacing."
run.figure(dice_figure(table), "dice_by_spacing", caption)

# %%
headline = {}
means = class_means(table)
for kind, mean in means.items():
    headline[f"{kind} dice"] = round(mean["dice"], 4)
    headline[f"{kind} scans"] = round(mean["scans"], 4)
    headline[f"{kind} false ml"] = round(mean["false_ml"], 4)
headline["test subjects"] = len(subjects(test))

# %%
phantom = not config.manifest or is_phantom(config.manifest)
if phantom:
    notes = [PHANTOMS]
else:
    people = f"{len(subjects(test))} subject(s), trained on {len(subjects(train))}"
    notes = [
        f"Tested on {people}: this proves plumbing, not accuracy.",
        "Labels are taken as given; labels that a model made are not ground truth.",
    ]
if failed:
    notes.append(f"This training failed: no test scan got a voxel of {', '.join(failed)}.")
notes.append(
    "Means run over the scans that hold the class; false ml is what was marked apart from any"
    " label, in all."
)
if config.note:
    notes.append(config.note)

# %%
weights = sum(p.numel() for p in net.parameters())
updates = config.steps
finish_run(
    run,
    headline=headline,
    table=table,
    cost=dict(updates=updates, slabs=updates * config.batch, parameters=weights),
    data="phantom" if phantom else "real",
    data_digest=data_digest(train + test),
    notes=notes,
)

# %% [markdown]
# ## Conclusion
#
# What came is in the record, not typed here.

# %%
print(f"{run.folder}: mean Dice of subjects never seen:")
for kind, mean in means.items():
    lost = " (failed: nothing found)" if kind in failed else ""
    print(f"{kind} {mean['dice']:.3f} over the {mean['scans']} scans that hold it{lost}")
