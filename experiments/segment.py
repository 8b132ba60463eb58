# %% [markdown]
# # Segmentation from slabs
#
# **Question.** Can a 2-D network that sees a slab of slices find the liver in subjects it has never seen, whatever their z spacing?
#
# **Prediction, before any run.** On phantoms: yes, with a mean Dice of at least 0.90 after a few hundred steps, and with the
# thickest slices worst, since there a neighbour is 8 mm away.
#
# Without a manifest this notebook makes its own phantoms and trains for seconds: a smoke run, which proves that the
# path from scan to mask to record is whole and nothing else.

# %% tags=["parameters"]
name = "smoke"          # of the run, free text
manifest = ""           # CSV with subject,image,label; "" makes phantoms
label_values = "1+2"    # label values of class 1, 2, …; + merges (phantoms: 1 liver, 2 lesion)
class_names = "liver"   # of class 1, 2, …
hold_out = ""           # subjects to test on, by comma; "" takes the manifest's split, or draws
seed = 0
target = "middle"       # slices that a slab predicts: all or middle
depth = 3               # slices a slab
attention = "both"      # none, channel, spatial or both, after each block
width = 8               # channels of the first level
levels = 3              # of the U-Net
inplane_mm = 6.0        # pixel size to train at; 0 is native; z is never resampled
crop = 64               # pixels a side
level = 60.0            # of the HU window
window = 400.0          # its width, HU
batch = 8               # slabs a step
steps = 30
lr = 0.003
foreground = 0.6        # share of slabs drawn for a class
augmented = True        # rotate, scale, re-light
largest = ""            # classes that keep only their largest parts, as many as in training; "" keeps all
threads = 0             # CPU threads; 0 leaves the setting
cache = ""              # folder that keeps prepared scans; "" keeps none
note = ""               # a sentence for the page
out = ""                # folder of the run; "" makes runs/segment-<time>

# %%
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from medseg.data.augment import Augment, augment
from medseg.data.cache import kept_case
from medseg.data.cohort import is_phantom, make_cohort
from medseg.data.datasets import Draw, align_labels, batches, load_case, read_scan
from medseg.data.manifest import data_digest, item_name, parse_label_values, read_manifest, select_classes, split_items, subjects
from medseg.log.runs import finish_run, start_run
from medseg.segment.losses import dice_ce
from medseg.segment.metrics import class_means, evaluate
from medseg.segment.predict import Recipe, keep_largest, predict, save_model, trained_on, usual_parts
from medseg.segment.report import best_slice, dice_figure, mark_empty, overlay_figure
from medseg.train.loop import fit, seed_everything
from medseg.volumes.read import read_volume
from medseg.volumes.write import write_labels

# %% [markdown]
# ## Config
#
# All settings in one frozen value, which refuses what cannot be. The parts check themselves: `Draw` the slabs, `Recipe` the network.


# %%
@dataclass(frozen=True)
class Config:
    name: str; manifest: str; label_values: str; class_names: str; hold_out: str; seed: int; target: str; depth: int; attention: str
    width: int; levels: int; inplane_mm: float; crop: int; level: float; window: float; batch: int; steps: int; lr: float
    foreground: float; augmented: bool; largest: str; threads: int; cache: str; note: str

    def __post_init__(self):
        if self.steps < 1 or not 0 < self.lr < 1: raise ValueError(f"steps must be at least 1 and lr in 0..1, got {self.steps} and {self.lr}")
        unknown = set(self.trimmed) - set(self.recipe.names)
        if unknown: raise ValueError(f"largest must name classes of {self.recipe.names}, got {sorted(unknown)}")

    @property
    def groups(self): return parse_label_values(self.label_values)
    @property
    def held(self): return tuple(s.strip() for s in self.hold_out.split(",") if s.strip())
    @property
    def trimmed(self): return tuple(s.strip() for s in self.largest.split(",") if s.strip())
    @property
    def draw(self): return Draw(self.depth, self.target, (self.crop, self.crop), self.batch, self.foreground, self.level, self.window, self.seed)
    @property
    def recipe(self):
        return Recipe(self.depth, self.target, len(self.groups) + 1, self.attention, self.width, self.levels, self.inplane_mm,
                      self.level, self.window, names=tuple(s.strip() for s in self.class_names.split(",")))


config = Config(**{k: globals()[k] for k in Config.__dataclass_fields__})
recipe, draw = config.recipe, config.draw
run = start_run("segment", asdict(config), out)

# %% [markdown]
# ## Run
#
# Data: read, checked as pairs, split by subject.

# %%
cohort = Path(config.manifest) if config.manifest else make_cohort(run.folder/"cohort", 3, 2, inplane_mm=6., spacings=(4., 8.))
train, test = split_items(read_manifest(cohort), config.held, seed=config.seed)
cases = [kept_case(item, config.groups, config.inplane_mm, config.cache) if config.cache else load_case(item, config.groups, config.inplane_mm) for item in train]
print(f"{len(train)} scans of {len(subjects(train))} subjects to train on, {len(test)} scans of {len(subjects(test))} subjects to test on")

# %% [markdown]
# How many parts a class has, its labels say; only a class that `largest` names is cut down to so many.

# %%
parts = dict(zip(recipe.names, usual_parts([case.classes for case in cases], recipe.classes)))
recipe = replace(recipe, largest=tuple(parts[c] if c in config.trimmed else 0 for c in recipe.names))
print("most parts of a class in one training scan:", parts)

# %% [markdown]
# Training: the batch of a step depends on the seed and the step alone.

# %%
seed_everything(config.seed, config.threads)
net = recipe.net()
slabs = ((*(augment(x, y, Augment(), (config.seed, step)) if config.augmented else (x, y)), who)
         for step, (x, y, who) in enumerate(batches(cases, draw, config.steps)))
for row in fit(net, slabs, dice_ce, config.steps, config.lr): run.row("train", dict(row, steps=config.steps))
checkpoint = save_model(run.folder/"model.safetensors", net.eval(), trained_on(recipe, [i.modality for i in train]), dict(run=config.name, seed=config.seed, step=config.steps))

# %% [markdown]
# Test: subjects that were not in training. The mask is written on the scan's own grid.

# %%
table, shown = [], []
for item in test:
    scan, labels = read_scan(item), read_volume(item.label, role="labels")
    labels = select_classes(align_labels(scan, labels), config.groups)
    mask, dropped = keep_largest(predict(net, recipe, scan), recipe.largest)
    write_labels(run.folder/"masks"/f"{item_name(item, test)}.nii.gz", mask)
    for number, score in evaluate(mask, labels, range(1, recipe.classes)).items():
        table.append(dict(subject=item.subject, **{"class": recipe.names[int(number) - 1]}, z_mm=scan.spacing[2], slices=scan.shape[2], **score,
                          dropped_ml=dropped[int(number) - 1]))
        run.row("subject", table[-1])
    shown.append((item_name(item, test), *best_slice(scan, mask, labels)))
failed = mark_empty(table)

# %% [markdown]
# ## Artefacts

# %%
run.figure(overlay_figure(shown), "masks", "The fullest slice of each test subject: label in green, prediction in red.")
run.figure(dice_figure(table), "dice_by_spacing", "Dice of each test subject against its z spacing.")
phantom = not config.manifest or is_phantom(config.manifest)
means = class_means(table)
headline = {f"{c} {word}": round(m[key], 4) for c, m in means.items()
            for word, key in (("dice", "dice"), ("scans", "scans"), ("false ml", "false_ml"))}
notes = ["All scans are phantoms: nothing here is a claim about patients."] if phantom else [
    f"Tested on {len(subjects(test))} subject(s), trained on {len(subjects(train))}: this proves plumbing, not accuracy.",
    "Labels are taken as given; labels that a model made are not ground truth."]
notes += [f"This training failed: no test scan got a voxel of {', '.join(failed)}."]*bool(failed)
notes.append("Means run over the scans that hold the class; false ml is what was marked apart from any label, in all.")
result = finish_run(run, headline=headline | {"test subjects": len(subjects(test))}, table=table,
                    cost=dict(updates=config.steps, slabs=config.steps*config.batch, parameters=sum(p.numel() for p in net.parameters())),
                    data="phantom" if phantom else "real", data_digest=data_digest(train + test), notes=notes + [config.note]*bool(config.note))

# %% [markdown]
# ## Conclusion
#
# What came is in the record, not typed here.

# %%
told = (f"{c} {m['dice']:.3f} over the {m['scans']} scans that hold it" + " (failed: nothing found)"*(c in failed)
        for c, m in means.items())
print(f"{run.folder}: mean Dice of subjects never seen:", ", ".join(told))
