# %% [markdown]
# # Slab against neighbours
#
# **Question.** After equally many updates, what does a 2-D network gain from the slices above and
# below: from one or two neighbours of the slice it predicts, or from a slab of ten slices that it
# predicts all at once? And does the answer change where slices are thick?
#
# **Prediction, before any run.** On phantoms: the liver hardly gains, since it can be told in one
# slice. Lesions gain most where slices are thin, since there a neighbour shows the same lesion
# again. The slab of ten is worst on thick slices, where it spans 60 mm and more.
#
# Without changes this notebook makes its own phantoms and trains each cell for seconds: a smoke
# run, which proves that the path is whole and nothing else.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
# data
people = 3  # phantoms to train on, of whom a fifth is only looked at
testers = 4  # phantoms to test on
anatomy = 0  # seed of the phantoms
spacings = "1.5,6,2,8"  # mm between slices, dealt out in turn
thick = 4.0  # mm; slices from here on count as thick
inplane_mm = 8.0  # pixel size
label_values = "1,2"  # of class 1, 2, …
class_names = "liver,lesion"

# network
cells = "1 middle, 10 all, 3 middle, 5 middle"  # depth and target of each: a slice, a slab, …
attention = "both"  # none, channel, spatial or both, after each block; several by comma
width = 4  # channels of the first level
levels = 2  # of the U-Net

# training
seeds = "0"  # of the trainings of each cell, by comma; bands need three
steps = 4  # updates of each training
batch = 8  # slabs a step
lr = 0.003
crop = 48  # pixels a side
foreground = 0.6  # share of slabs drawn for a class

# run
name = "smoke"  # of the run, free text
threads = 1  # CPU threads
note = ""  # a sentence for the page
resume = False  # go on in the folder of a stopped run: trainings that ended are not made again
out = ""  # folder of the run; "" makes runs/slabs-<time>

# %%
from pathlib import Path

from medseg.data.cases import read_labels, read_scan
from medseg.data.cohort import make_cohort
from medseg.data.manifest import data_digest, parse_label_values
from medseg.data.manifest import item_name, subjects
from medseg.io.files import read_rows, write_json
from medseg.io.volume import along_z
from medseg.runs.compare import compare_runs
from medseg.runs.folder import finish_run, read_json
from medseg.runs.page import show_run
from medseg.runs.parameters import PHANTOMS, begin_run, frozen, known_to, numbers
from medseg.runs.pictures import band_figure
from medseg.segment.metrics import class_means
from medseg.segment.predict import load_model, predict
from medseg.segment.report import best_slice, mark_empty, overlay_figure, score_rows
from medseg.segment.settings import SegmentSettings
from medseg.segment.train import Rows, train, training_sides
from medseg.train.statistics import group_intervals

# %% [markdown]
# ## Config
#
# `SegmentSettings` checks what each training depends on. A training is told by its depth, target,
# attention and seed, the columns in which the table tells them apart.

# %%
config = frozen(globals())
groups = parse_label_values(config.label_values)
kinds = config.class_names.split(",")


def every_cell(config):
    for attention in config.attention.split(","):
        for cell in config.cells.split(","):
            depth, target = cell.split()
            yield int(depth), target, attention.strip()


plan = list(every_cell(config))
trainings = [(*cell, seed) for seed in numbers(config.seeds, int) for cell in plan]


# %%
def settings_of(depth, target, attention, seed, manifest=""):
    return SegmentSettings(
        manifest=str(manifest),
        **known_to(SegmentSettings, config) | dict(attention=attention),
        depth=depth,
        target=target,
        seed=seed,
        keep="last",
    )


for training in trainings:
    settings_of(*training)  # refuses what cannot be, before anything is made
run = begin_run("slabs", config, dict(factors=["depth", "target", "attention"]))

# %% [markdown]
# ## Run
#
# Every cell sees the same people, the same number of updates and, from one seed, slabs drawn by
# the same dice.

# %%
cohort = run.folder / "cohort" / "manifest.csv"
if not cohort.exists():
    counts = config.people, config.testers, config.anatomy
    between = numbers(config.spacings)
    make_cohort(cohort.parent, *counts, config.inplane_mm, between, workers=1)
sides = training_sides(settings_of(*trainings[0], cohort))
test = sides.test
print(f"{len(subjects(sides.train))} people to train on, {len(subjects(test))} to test on")
print(f"{len(trainings)} trainings of {len(plan)} cells")


# %% [markdown]
# One training: the network and its diary, in a folder of their own, then its scores on people it
# has not seen.

# %%
def kept(training) -> Path:
    return run.folder / "trainings" / "_".join(map(str, training))


# %%
def scored(net, recipe, seed):
    "A row for each test scan and class."
    told = dict(depth=recipe.depth, target=recipe.target, attention=recipe.attention, seed=seed)
    table = []
    for item in test:
        scan = read_scan(item)
        mask, labels = predict(net, recipe, scan), read_labels(item, scan, groups)
        z_mm, _ = along_z(scan)
        about = told | dict(z_mm=z_mm, slices="thick" if z_mm >= config.thick else "thin")
        who = item.subject, item_name(item, test)
        table += score_rows(*who, mask, labels, recipe.names, about)
    return table


# %%
def training_of(*training):
    "Train one network, keep it, score it."
    place = kept(training)
    place.mkdir(parents=True, exist_ok=True)
    ended = train(settings_of(*training, cohort), Rows(place), resume=True)
    net, recipe = load_model(place / "model.safetensors")
    rows = [row for row in read_rows(place / "rows.jsonl") if row.pop("kind") == "train"]
    every = max(1, config.steps // 40)
    depth, target, attention, seed = training
    name = f"{depth}, {target}, {attention}, seed {seed}"
    return dict(
        rows=[dict(row, training=name) for row in rows[::every]],
        table=scored(net, recipe, seed),
        parameters=ended["parameters"],
        train_s=round(ended["seconds"], 1),
    )


# %% [markdown]
# Each training is written down when it ends, so that a stopped run goes on with the next.

# %%
done = {}
for training in trainings:
    place = kept(training) / "done.json"
    if not place.exists():
        write_json(place, training_of(*training))
    done[training] = read_json(place)
    print(place.parent.name, "ended", flush=True)

# %% [markdown]
# ## Artefacts
#
# Where the mean over trainings and people lies, for each class and for thin and thick slices;
# trainings that failed stay out.

# %%
table = [row for one in done.values() for row in one["table"]]
failed = mark_empty(table, ("depth", "target", "attention", "seed"))
for one in done.values():
    for row in one["rows"]:
        run.row("train", row)
for row in table:
    run.row("subject", row)


# %%
def title_of(depth, target, attention):
    if depth == 1:
        said = "one slice"
    elif target == "all":
        said = f"slab of {depth}"
    elif depth == 3:
        said = "1 neighbour a side"
    else:
        said = f"{depth // 2} neighbours a side"
    several = len({attention for *_, attention in plan}) > 1
    return f"{said}, {attention}" if several else said


titles = {cell: title_of(*cell) for cell in plan}
named = [dict(r, cell=titles[r["depth"], r["target"], r["attention"]]) for r in table]

# %%
found = {}
for kind in kinds:
    for slices in ("thin", "thick"):
        rows = [r for r in named if r["class"] == kind and r["slices"] == slices]
        if rows:
            band = group_intervals(rows, "cell", "dice")
            found[f"{kind}, {slices} slices"] = {title: band[title] for title in titles.values()}
first, *others = numbers(config.seeds, int)
run.figure(
    band_figure(found),
    "bands",
    f"Dice by cell over {1 + len(others)} seeds: the mean over trainings and people and its 95 %"
    " interval; trainings that failed stay out.",
)

# %%
for item in (test[0], test[1]):
    scan, shown = read_scan(item), []
    labels = read_labels(item, scan, groups)
    for cell in plan:
        net, recipe = load_model(kept((*cell, first)) / "model.safetensors")
        shown.append((titles[cell], *best_slice(scan, predict(net, recipe, scan), labels)))
    run.figure(
        overlay_figure(shown, kinds, len(shown)),
        f"{item.subject}",
        f"The fullest slice of {item.subject}, {along_z(scan)[0]:g} mm apart, by cell, seed"
        f" {first}, a colour a class: labels as areas, predictions as lines.",
    )

# %%
means = {}
for title in titles.values():
    means[title] = class_means([row for row in named if row["cell"] == title])
headline = {f"{c} dice, {t}": round(means[t][c]["dice"], 4) for c in kinds for t in means}
for kind in kinds:
    lost = [one for one in failed if one.split(",")[0] == kind]
    headline[f"{kind}, empty trainings"] = len(lost)
headline["trainings"] = len(done)
headline["seeds"] = 1 + len(others)
headline["test subjects"] = len(subjects(test))

# %%
notes = [
    PHANTOMS,
    (
        "Updates are equal; a slab that predicts all its slices learns from ten labelled slices"
        " where the others learn from one."
    ),
]
if config.note:
    notes.append(config.note)
if failed:
    lost = "; ".join(failed)
    notes.append(f"Failed, for no test scan got a voxel of the class: {lost}.")

# %%
finish_run(
    run,
    headline=headline,
    table=table,
    cost=dict(
        updates=config.steps * len(done),
        trainings=len(done),
        wall_s=round(sum(one["train_s"] for one in done.values()), 1),
        parameters=max(one["parameters"] for one in done.values()),
    ),
    data="phantom",
    data_digest=data_digest([*sides.train, *sides.validation, *test]),
    notes=notes,
    people=dict(train=sides.train, validation=sides.validation, test=test),
    manifest=cohort,
)

# %% [markdown]
# ## Conclusion
#
# What came is in the record, not typed here. Which cells differ is said by the rule of the chapter
# on statistics: over seeds and people, corrected for the number of questions, failed trainings
# counted and not averaged.

# %%
told = compare_runs([run.folder], "dice", ["class", "slices"])
print(f"{run.folder}:", *told["says"], sep="\n")
for part in told["parts"]:
    for line in part["says"]:
        print(f"{part['name']}: {line}")

# %%
show_run(run)
