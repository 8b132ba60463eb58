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
folds = 0  # parts into which those who are not tested are dealt; 0 holds out a fifth to decide
fold = 0  # which part decides, from 0
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
extend = ""  # updates of further courses, by comma, for a run that goes on
minutes = 0.0  # of training at most; 0 sets no limit
patience = 0  # looks at validation people without a gain after which it ends; 0 goes on
batch = 8  # slabs an update
accumulate = 1  # parts in which a batch is worked on
lr = 0.003
schedule = "cosine"  # how the rate falls: cosine, poly or constant
warm = 0.05  # share of the steps in which it rises
decay = 0.0001  # of the weights
ema = 0.0  # share that the average of the weights keeps; 0 keeps no average
crop = 64  # pixels a side
foreground = 0.6  # share of slabs drawn for a class
augmented = True  # rotate, scale, re-light
rotate_deg = 12.0  # largest angle
scale = 0.15  # largest change of size
class_weights = ""  # for background, class 1, …, by comma; "" is all equal

# what is looked at on the way
validate_every = 0  # updates between looks at validation people; 0 looks at the end
save_every = 100  # updates between saved states, from which a stopped run goes on
keep = "best"  # the network to use: best of the looks, or last
guard = "say"  # if a class is found in nobody: say, stop, or restart from another seed

# place
device = "auto"  # auto, cpu, cuda or mps
precision = "auto"  # auto, fp32, bf16, fp16 or tf32
processes = 1  # that train together
workers = 0  # processes that make batches ahead, for each that trains
compile = False  # compile the network
threads = 0  # CPU threads; 0 leaves the setting

# run
name = "smoke"  # of the run, free text
note = ""  # a sentence for the page
resume = False  # go on in the folder of a stopped run
out = ""  # folder of the run; "" makes runs/segment-<time>

# %%
from dataclasses import asdict, replace

from medseg.data.cases import hide_ignored, read_channels, read_labels, read_scan
from medseg.data.cohort import is_phantom, make_cohort
from medseg.data.manifest import data_digest, item_names, parse_label_values
from medseg.data.manifest import subjects
from medseg.data.ready import check_training_items
from medseg.io.write import write_labels
from medseg.runs.folder import finish_run
from medseg.runs.page import show_run
from medseg.runs.plan import check_fits
from medseg.runs.parameters import PHANTOMS, begin_run, frozen, known_to, words
from medseg.segment.metrics import class_means
from medseg.segment.predict import keep_largest, load_model, predict, usual_components
from medseg.segment.report import best_slice, dice_figure, mark_empty, overlay_figure, score_rows
from medseg.segment.settings import SegmentSettings
from medseg.segment.train import prepared_cases, train, training_sides

# %% [markdown]
# ## Config
#
# All parameters in one frozen value. `SegmentSettings` checks what a training depends on.

# %%
config = frozen(globals())
settings = SegmentSettings(**known_to(SegmentSettings, config))
groups, trimmed = parse_label_values(config.label_values), words(config.largest)
if unknown := set(trimmed) - set(names := words(config.class_names)):
    raise ValueError(f"largest must name classes of {names}, got {sorted(unknown)}")
settings.place  # what this machine lacks, or cannot hold, is said before a scan is read
check_fits("segment", asdict(config))
run = begin_run("segment", config)

# %% [markdown]
# ## Run
#
# Who trains, who decides on the way, who is tested: no family stands on two sides.

# %%
if not config.manifest:
    cohort = run.folder / "cohort" / "manifest.csv"
    if not cohort.exists():
        make_cohort(cohort.parent, 4, 2, inplane_mm=6.0, spacings=(4.0, 8.0))
    settings = replace(settings, manifest=str(cohort))
sides = training_sides(settings)
for does, items in (("learn", sides.train), ("decide", sides.validation), ("test", sides.test)):
    print(f"to {does}: {len(items)} scans of {len(subjects(items))} subjects")

# %% [markdown]
# Every scan is checked before the first update: pairs, grids, classes. A test scan without a label
# is predicted and not scored.

# %%
decide = sides.validation if sides.validation is not sides.train else []
scored, unscored = check_training_items(sides.train, decide, sides.test, groups)
if unscored:
    print(unscored)

# %% [markdown]
# Training. The batch of a step depends on the seed and the step alone, and the state in the folder
# holds all else: a run that was stopped goes on as if nothing had been.

# %%
trained = train(settings, run, resume=config.resume)
print(f"ended after {trained['step']} steps: {trained['why']}")
net, recipe = load_model(run.folder / "model.safetensors")

# %% [markdown]
# How many parts a class has, the labels of the training say; only a class that `largest` names is
# cut down to so many.

# %%
if trimmed:
    masks = [case.classes for case in prepared_cases(settings, sides.train)]
    usual = dict(zip(recipe.names, usual_components(masks, recipe.classes)))
    parts = tuple(usual[name] if name in trimmed else 0 for name in recipe.names)
    recipe = replace(recipe, largest=parts)
    print("largest parts kept:", dict(zip(recipe.names, parts)))


# %% [markdown]
# Test: subjects that were neither learnt from nor asked on the way. The mask is written on the
# scan's own grid.

# %%
def tested(item, name):
    "The rows of one scan, and what is drawn of it; nothing where there is no label."
    scan = read_scan(item)
    mask, dropped = keep_largest(predict(net, recipe, read_channels(item)), recipe.largest)
    write_labels(run.folder / "masks" / f"{name}.nii.gz", mask, recipe.names)
    if item not in scored:
        return [], []
    mask, labels = hide_ignored(mask, read_labels(item, scan, groups))
    rows = score_rows(item.subject, name, mask, labels, recipe.names, {})
    for row, less in zip(rows, dropped):
        row["dropped_ml"] = less
        run.row("subject", row)
    return rows, [(name, *best_slice(scan, mask, labels))]


# %%
table, shown = [], []
for name_, item in zip(item_names(sides.test), sides.test):
    rows, pictures = tested(item, name_)
    table += rows
    shown += pictures
failed = mark_empty(table)

# %% [markdown]
# ## Artefacts

# %%
if shown:
    caption = "The fullest slice of each test scan: labels as areas, predictions as lines."
    run.figure(overlay_figure(shown, recipe.names), "masks", caption)
    caption = "Dice of each test scan against its z spacing."
    run.figure(dice_figure(table), "dice_by_spacing", caption)

# %%
headline, means = {}, class_means(table)
for kind, mean in means.items():
    headline[f"{kind} dice"] = round(mean["dice"], 4)
    headline[f"{kind} scans"] = round(mean["scans"], 4)
    headline[f"{kind} false ml"] = round(mean["false_ml"], 4)
headline["test subjects"] = len(subjects(sides.test))
headline["validation dice"] = round(trained["best"] or 0, 4)

# %%
phantom = not config.manifest or is_phantom(config.manifest)
if phantom:
    notes = [PHANTOMS]
else:
    people = f"{len(subjects(sides.test))} subject(s), trained on {len(subjects(sides.train))}"
    notes = [
        f"Tested on {people}: this proves plumbing, not accuracy.",
        "Labels are taken as given; labels that a model made are not ground truth.",
    ]

# %%
notes += [text for text in (sides.decides, unscored) if text]
notes.append(f"It ended after {trained['step']} steps: {trained['why']}.")
if failed:
    notes.append(f"This training failed: no test scan got a voxel of {', '.join(failed)}.")
notes.append(
    "Means run over the scans that hold the class; false ml is what was marked apart from any"
    " label, in all."
)
if config.note:
    notes.append(config.note)

# %%
updates = trained["step"]
finish_run(
    run,
    headline=headline,
    table=table,
    cost=dict(
        updates=updates,
        slabs=updates * config.batch,
        parameters=trained["parameters"],
        wall_s=round(trained["seconds"], 1),
    ),
    data="phantom" if phantom else "real",
    data_digest=data_digest(sides.train + sides.test),
    notes=notes,
    people=dict(train=sides.train, validation=sides.validation, test=sides.test),
    manifest=config.manifest,
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

# %%
show_run(run)
