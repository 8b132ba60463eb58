# %% [markdown]
# # Slab against neighbours
#
# **Question.** After equally many updates, what does a 2-D network gain from the slices above and below: from one or two neighbours of the slice it
# predicts, or from a slab of ten slices that it predicts all at once? And does the answer change where slices are thick?
#
# **Prediction, before any run.** On phantoms: the liver hardly gains, since it can be told in one slice. Lesions gain most where slices are thin, since
# there a neighbour shows the same lesion again. The slab of ten is worst on thick slices, where it spans 60 mm and more.
#
# Without changes this notebook makes its own phantoms and trains each cell for seconds: a smoke run, which proves that the path is whole and nothing else.

# %% tags=["parameters"]
name = "smoke"          # of the run, free text
cells = "1 middle, 10 all, 3 middle, 5 middle"  # depth and target of each cell: a slice, a slab, one neighbour, two
seeds = "0"             # of the trainings of each cell, by comma; bands need three
steps = 4               # updates of each training
batch = 8               # slabs a step
people = 2              # phantoms to train on
testers = 4             # phantoms to test on
anatomy = 0             # seed of the phantoms
spacings = "1.5,6,2,8"  # mm between slices, dealt out in turn
thick = 4.0             # mm; slices from here on count as thick
inplane_mm = 8.0        # pixel size
crop = 48               # pixels a side
label_values = "1,2"    # of class 1, 2, …
class_names = "liver,lesion"
attention = "both"      # none, channel, spatial or both, after each block; several by comma
width = 4               # channels of the first level
levels = 2              # of the U-Net
lr = 0.003
foreground = 0.6        # share of slabs drawn for a class
threads = 1             # CPU threads
note = ""               # a sentence for the page
resume = False          # go on in the folder of a stopped run: trainings that ended are not made again
out = ""                # folder of the run; "" makes runs/slabs-<time>

# %%
from dataclasses import asdict, dataclass, fields
from time import process_time

import numpy as np
from matplotlib.figure import Figure

from medseg.data.augment import Augment, augment
from medseg.data.cohort import make_cohort
from medseg.data.datasets import Draw, align_labels, batches, load_case, read_scan
from medseg.data.manifest import data_digest, parse_label_values, read_manifest, select_classes, split_items, subjects
from medseg.log.compare import compare
from medseg.log.runs import finish_run, read_json, resume_run, start_run
from medseg.segment.losses import dice_ce
from medseg.segment.metrics import class_means, evaluate
from medseg.segment.predict import Recipe, load_model, predict, save_model, trained_on
from medseg.segment.report import best_slice, mark_empty, overlay_figure
from medseg.train.statistics import bands
from medseg.train.loop import fit, seed_everything
from medseg.volumes.files import write_json
from medseg.volumes.read import read_volume

# %% [markdown]
# ## Config
#
# `Draw` checks how slabs are drawn and `Recipe` the network; the rest is checked here. `factors` names the columns of the table in which trainings differ.


# %%
@dataclass(frozen=True)
class Config:
    name: str; cells: str; seeds: str; steps: int; batch: int; people: int; testers: int; anatomy: int; spacings: str; thick: float; inplane_mm: float; crop: int
    label_values: str; class_names: str; attention: str; width: int; levels: int; lr: float; foreground: float; threads: int; note: str

    def __post_init__(self):
        if self.steps < 1 or not 0 < self.lr < 1: raise ValueError(f"steps must be at least 1 and lr in 0..1, got {self.steps} and {self.lr}")
        for kind in self.kinds: self.recipe(*kind)

    @property
    def kinds(self):
        cells = [cell.split() for cell in self.cells.split(",")]
        return [(int(depth), target, kind.strip()) for kind in self.attention.split(",") for depth, target in cells]
    @property
    def groups(self): return parse_label_values(self.label_values)
    @property
    def repeats(self): return [int(s) for s in self.seeds.split(",")]
    def draw(self, depth, target, seed): return Draw(depth, target, (self.crop, self.crop), self.batch, self.foreground, seed=seed)
    def recipe(self, depth, target, attention):
        return Recipe(depth, target, len(self.groups) + 1, attention, self.width, self.levels, self.inplane_mm, names=self.class_names.split(","))


config = Config(**{f.name: globals()[f.name] for f in fields(Config)})
run = (resume_run if resume else start_run)("slabs", dict(asdict(config), factors=["depth", "target", "attention"]), out)

# %% [markdown]
# ## Run
#
# Every cell sees the same people, the same number of updates and, from one seed, slabs drawn by the same dice.

# %%
cohort = run.folder/"cohort"/"manifest.csv"
if not cohort.exists(): make_cohort(cohort.parent, config.people, config.testers, config.anatomy, config.inplane_mm, tuple(map(float, config.spacings.split(","))), workers=1)
train, test = split_items(read_manifest(cohort), seed=0)
cases = [load_case(item, config.groups, config.inplane_mm) for item in train]
print(f"{len(subjects(train))} people to train on, {len(subjects(test))} to test on, {len(config.kinds)} cells from {len(config.repeats)} seeds")

# %% [markdown]
# One training: the network, its diary, its scores. It is written down when it ends, so that a stopped run goes on with the next.


# %%
def training(depth, target, attention, seed):
    "Train one network and score it on people it has not seen."
    seed_everything(seed, config.threads)
    recipe, began = config.recipe(depth, target, attention), process_time()
    net = recipe.net()
    slabs = ((*augment(x, y, Augment(), (seed, step)), who) for step, (x, y, who) in enumerate(batches(cases, config.draw(depth, target, seed), config.steps)))
    rows = [dict(row, training=f"{depth}, {target}, {attention}, seed {seed}") for row in fit(net, slabs, dice_ce, config.steps, config.lr)]
    save_model(run.folder/"models"/f"{depth}_{target}_{attention}_{seed}.safetensors", net.eval(), trained_on(recipe, [i.modality for i in train]), dict(run=config.name, seed=seed, step=config.steps))
    seconds, table = process_time() - began, []
    for item in test:
        scan = read_scan(item)
        scores = evaluate(predict(net, recipe, scan), labels_of(item, scan), range(1, recipe.classes))
        for number, score in scores.items():
            table.append(dict(subject=item.subject, **{"class": recipe.names[int(number) - 1]}, depth=depth, target=target, attention=attention, seed=seed, z_mm=scan.spacing[2],
                              slices="thick" if scan.spacing[2] >= config.thick else "thin", **score))
    return dict(rows=rows[::max(1, config.steps//40)], table=table, parameters=sum(p.numel() for p in net.parameters()), train_s=round(seconds, 1))


def labels_of(item, scan): return select_classes(align_labels(scan, read_volume(item.label, role="labels")), config.groups)


done = {}
for seed in config.repeats:
    for kind in config.kinds:
        place = run.folder/"done"/f"{'_'.join(map(str, kind))}_{seed}.json"
        if not place.exists(): write_json(place, training(*kind, seed))
        done[*kind, seed] = read_json(place)
        print(place.stem, "ended", flush=True)

# %% [markdown]
# ## Artefacts
#
# Where the mean over trainings and people lies, for each class and for thin and thick slices; trainings that failed stay out.

# %%
table = [row for one in done.values() for row in one["table"]]
failed = mark_empty(table, ("depth", "target", "attention", "seed"))
for one in done.values():
    for row in one["rows"]: run.row("train", row)
for row in table: run.row("subject", row)
shown_kinds = len({a for *_, a in config.kinds}) > 1
titles = {(d, t, a): ("one slice" if d == 1 else f"slab of {d}" if t == "all" else f"{d//2} neighbour{'s'*(d > 3)} a side") + f", {a}"*shown_kinds for d, t, a in config.kinds}
named = [dict(row, cell=titles[row["depth"], row["target"], row["attention"]]) for row in table]
found = {(c, s): bands([r for r in named if r["class"] == c and r["slices"] == s], "cell", "dice") for c in config.class_names.split(",") for s in ("thin", "thick")
         if any(r["class"] == c and r["slices"] == s for r in named)}

# %%
fig = Figure(figsize=(max(2.7, .4*len(titles))*len(found), 2.6 + .8*shown_kinds), layout="constrained")
for ax, ((kind, slices), band) in zip(np.ravel(fig.subplots(1, len(found), squeeze=False)), found.items()):
    for x, cell in enumerate(titles.values()):
        low, mean, high = band[cell]
        ax.plot([x, x], [low, high], color="#2a8f86", lw=5, alpha=.5, solid_capstyle="round"); ax.plot(x, mean, "o", color="#123", ms=4)
    ax.set_xticks(range(len(titles)), titles.values(), rotation=35, ha="right", fontsize=7); ax.set_title(f"{kind}, {slices} slices", fontsize=9); ax.tick_params(axis="y", labelsize=7)
run.figure(fig, "bands", f"Dice by cell over {len(config.repeats)} seeds: the mean over trainings and people and its 95 % interval; trainings that failed stay out.")
for item in (test[0], test[1]):
    scan, shown = read_scan(item), []
    for kind in config.kinds:
        net, recipe = load_model(run.folder/"models"/f"{'_'.join(map(str, kind))}_{config.repeats[0]}.safetensors")
        shown.append((titles[kind], *best_slice(scan, predict(net, recipe, scan), labels_of(item, scan))))
    run.figure(overlay_figure(shown, most=len(shown)), f"{item.subject}", f"The fullest slice of {item.subject}, {scan.spacing[2]:g} mm apart, by cell, seed {config.repeats[0]}: label in green, prediction in red.")

# %%
notes = ["All scans are phantoms: nothing here is a claim about patients.", "Updates are equal; a slab that predicts all its slices learns from ten labelled slices where the others learn from one."] + [config.note]*bool(config.note)
notes += [f"Failed, for no test scan got a voxel of the class: {'; '.join(failed)}."]*bool(failed)
kinds = config.class_names.split(",")
means = {title: class_means([r for r in named if r["cell"] == title]) for title in titles.values()}
mean = {f"{c} dice, {title}": round(means[title][c]["dice"], 4) for c in kinds for title in means}
empty = {f"{c}, empty trainings": sum(f.split(",")[0] == c for f in failed) for c in kinds}
result = finish_run(run, headline=mean | empty | {"trainings": len(done), "seeds": len(config.repeats), "test subjects": len(subjects(test))}, table=table,
                    cost=dict(updates=config.steps*len(done), trainings=len(done), wall_s=round(sum(one["train_s"] for one in done.values()), 1), parameters=max(one["parameters"] for one in done.values())),
                    data="phantom", data_digest=data_digest(train + test), notes=notes)

# %% [markdown]
# ## Conclusion
#
# What came is in the record, not typed here. Which cells differ is said by the rule of the chapter on statistics: over seeds and people, corrected for the number of questions, failed trainings counted and not averaged.

# %%
told = compare([run.folder], "dice", ["class", "slices"])
print(f"{run.folder}:", *told["says"], *(f"{part['name']}: {line}" for part in told["parts"] for line in part["says"]), sep="\n")
