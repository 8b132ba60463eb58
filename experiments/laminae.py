# %% [markdown]
# # The missing laminae
#
# **Question.** The note's best model made bodies, discs and spinous processes but no laminae (row B37), and its author suspected that the MR did not show them (row B38). Which parts of the bone can be read out of a measured CT, of a CT made from an MR that shows the laminae, and of a CT made from an MR that does not?
#
# **Prediction, before any run.** From an MR without laminae there are none in the bone, bodies being as they were: the symptom of B37. From an MR that shows them a short training finds some, fewer than of the bodies: laminae are thin. So the symptom alone does not tell the cause; only looking at the MR does.
#
# Translators can be named. Without, each seed trains two that differ in one thing: one learns from CTs of whole people, one from CTs of people without laminae, as after a laminectomy. **Prediction.** The second loses the laminae of
# everybody and keeps the bodies: the symptom of B37 again, though the MR shows all. By default these trainings take seconds: a smoke run, which proves that the path is whole and nothing else.

# %% tags=["parameters"]
name = "smoke"          # of the run, free text
models = ""             # translators, .safetensors files with commas between; "" trains two for each seed
people = 1              # phantoms to look at
first = 1000            # number of the first
anatomy = 0             # seed of the phantoms
extent_mm = "78,96,66"  # of the phantoms, along x, y, z
scan_mm = 3.0           # voxel size of the scans
seeds = "0"             # of the trainings, if there are any
train = 1               # people with an MR to train on, and as many others with a CT
train_mm = 6.0          # voxel size of the trainings
patch = "8,8,8"         # voxels along x, y, z
width = 4               # of the generator and the discriminator
steps = 2               # of each training
threads = 1             # CPU threads; 0 leaves the setting
note = ""               # a sentence for the page
out = ""                # folder of the run; "" makes runs/laminae-<time>

# %%
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from medseg.data.unpaired import PatchDraw, make_scan, on_grid, unpaired_batches
from medseg.log.runs import finish_run, start_run
from medseg.train.statistics import ask, bands, judge
from medseg.translate.bone import bone_mask, patient_mask
from medseg.translate.parts import part_report, sentence, visible
from medseg.translate.predict import TranslateRecipe, load_translator, save_translator, translate_scan
from medseg.translate.settings import Settings
from medseg.translate.step import CycleGAN, fit_cyclegan
from medseg.volumes.files import digest
from medseg.volumes.resample import resample_to
from medseg.volumes.spinescan import spine_ct, spine_mr
from medseg.volumes.vertebra import PIECES, SPINE

# %% [markdown]
# ## Config

# %%
@dataclass(frozen=True)
class Config:
    name: str; models: str; people: int; first: int; anatomy: int; extent_mm: str; scan_mm: float; seeds: str; train: int; train_mm: float; patch: str; width: int; steps: int; threads: int; note: str

    def __post_init__(self):
        if min(self.people, self.train, self.steps) < 1: raise ValueError(f"people, train and steps must be at least 1, got {self.people}, {self.train} and {self.steps}")
        self.every_seed, self.draw

    @property
    def extent(self): return tuple(map(float, self.extent_mm.split(",")))
    @property
    def every_seed(self): return [int(s) for s in self.seeds.split(",")]
    @property
    def draw(self): return PatchDraw(tuple(map(int, self.patch.split(","))))


config = Config(**{f.name: globals()[f.name] for f in fields(Config)})
run = start_run("laminae", asdict(config), out)
if threads: torch.set_num_threads(threads)

# %% [markdown]
# ## Run
#
# Each person has a CT, an MR, and an MR as it would be without laminae. All bone is judged against the true parts of the whole person.

# %%
WINDOW = (-300., 900.)  # HU that become -1 and 1


def scans(make, people, mm, **more): return {k: make(k, config.anatomy, spacing=(mm,)*3, extent_mm=config.extent, **more) for k in people}


def sides(laminae): # MRs of some people, CTs of others
    pairs = (spine_mr, "MR", range(config.train), {}), (spine_ct, "CT", range(config.train, 2*config.train), dict(laminae=laminae))
    return [[make_scan(str(k), s.image, kind, config.train_mm, WINDOW) for k, s in scans(make, people, config.train_mm, **more).items()] for make, kind, people, more in pairs]


files = {Path(f.strip()): ("", None) for f in config.models.split(",") if f.strip()}
trainings = [] if files else [(word, seed) for word in ("with", "without") for seed in config.every_seed]
taught = {word: sides(word == "with") for word in dict.fromkeys(w for w, _ in trainings)}
for n, (word, seed) in enumerate(trainings):
    s = Settings("resnet2", config.width, disc_width=config.width, disc_layers=2, adversarial=3., identity=2., gradient=2., lr=.001, lr_disc=.0002, decay_from=.5, ema=.98, steps=config.steps, spacing=(config.train_mm,)*3, seed=seed)
    model = CycleGAN(s)
    for row in fit_cyclegan(model, unpaired_batches(*taught[word], config.draw, config.steps)):
        run.row("train", dict(row, step=config.steps*n + row["step"] + 1, steps=config.steps*len(trainings), laminae=word == "with", seed=seed))
    file = run.folder/f"{word}_laminae_{seed}.safetensors"
    files[save_translator(file, model.translator(), TranslateRecipe("resnet2", config.width, patch=config.draw.size, spacing_mm=config.train_mm, ct_range=WINDOW), dict(run=config.name, seed=seed))] = f", taught by CTs {word} laminae", seed
who = range(config.first, config.first + config.people)
cts, shows, lacks = (scans(make, who, config.scan_mm, **more) for make, more in ((spine_ct, {}), (spine_mr, {}), (spine_mr, dict(laminae=False))))
inputs = {"MR with laminae": shows, "MR without": lacks}
body = {k: patient_mask(s.image) for k, s in cts.items()}


@cache
def seen(kind, k, part): return visible(inputs[kind][k].image, cts[k].labels, part)["visible"]


@cache
def coarse(k, mm): return bone_mask(resample_to(on_grid(cts[k].image, mm), cts[k].image), body=body[k])[0]

# %% [markdown]
# A translator works on coarse voxels, and on those a thin lamina is partly lost in a measured CT too. So there are four ways to bone: the measured CT, the measured CT on the translator's voxels, and the two made CTs, which are set against the second.

# %%
def told(ct_kind, k, translator, mask, like, kind=None, seed=None):
    "A row for each part, with the sentence of the report."
    report = part_report(mask, cts[k].labels, None, cts[k].facts["levels"], like)
    for part, r in report["parts"].items():
        shown = seen(kind, k, part) if kind and part == "lamina" and r["state"] != "found" else None
        yield dict(bone_of=ct_kind, subject=k, translator=translator, seed=seed, part=part, recall=r["recall"], best=r["best"], state=r["state"], seen=shown, false_share=report["false_share"], says=sentence(part, r["state"], r["recall"], shown))


table, made = [], {}
for k in who:
    table += told("measured CT", k, "", bone_mask(cts[k].image, body=body[k])[0], None)
    for n, (file, (by, seed)) in enumerate(files.items()):
        net, recipe = load_translator(file)
        best = coarse(k, recipe.spacing_mm)
        if not n: table += told(f"measured CT, {' × '.join(f'{s:g}' for s in np.atleast_1d(recipe.spacing_mm))} mm", k, "", best, None)
        for kind, scans in inputs.items():
            made[kind, k, n] = translate_scan(net, recipe, scans[k].image)[0]
            table += told(f"CT made of {kind}{by}", k, file.stem, bone_mask(made[kind, k, n], body=body[k])[0], best, kind, seed)
for r in table: run.row("part", r)

# %% [markdown]
# ## Artefacts

# %%
ways = list(dict.fromkeys(r["bone_of"] for r in table))
mean = {w: {p: float(np.mean([r["recall"] for r in table if (r["bone_of"], r["part"]) == (w, p)])) for p in PIECES} for w in ways}
fig = Figure(figsize=(7.5, 2.8), layout="constrained"); ax = fig.subplots()
for i, w in enumerate(ways): ax.bar(np.arange(len(PIECES)) + .2*i - .3, mean[w].values(), .19, label=w)
ax.set_xticks(range(len(PIECES)), PIECES); ax.set_ylabel("recall"); ax.legend(fontsize=7)
run.figure(fig, "recall", f"The share of each part of the true bone that is read out, {len(who)} phantoms, {len(files)} translators.")
k = who[0]; z = int((cts[k].labels.voxels == SPINE["lamina"]).sum((0, 1)).argmax())
shown = {"measured CT": cts[k].image, "MR with laminae": shows[k].image, "CT made of it": made["MR with laminae", k, 0], "MR without": lacks[k].image, "CT made of that": made["MR without", k, 0]}
fig = Figure(figsize=(10, 2.6), layout="constrained")
for ax, (label, v) in zip(fig.subplots(1, 5), shown.items()):
    ax.imshow(v.voxels[:, :, z].T, cmap="gray", origin="lower", **({} if label.startswith("MR") else dict(vmin=-200, vmax=600))); ax.set_axis_off(); ax.set_title(label, fontsize=8)
    ax.contour((cts[k].labels.voxels[:, :, z] == SPINE["lamina"]).T, [.5], colors="C1", linewidths=.7)
run.figure(fig, "cuts", f"Phantom {k}, cut across a vertebra; the true laminae are outlined.")
lamina = [r for r in table if r["part"] == "lamina" and r["translator"]]
lost = [r for r in lamina if r["state"] == "missing"]
counts = {w: f"{sum(r['bone_of'] == w for r in lost)} of {sum(r['bone_of'] == w for r in lamina)}" for w in ways if "made" in w}
blame = f"laminae missing from {len(lost)} of {len(lamina)} made CTs: {sum(bool(r['seen']) for r in lost)} although the MR shows them, {sum(r['seen'] is False for r in lost)} because it does not"
pairs = [(a["recall"], b["recall"]) for a in lamina for b in lamina if a["bone_of"].startswith("CT made of MR with laminae") and b["bone_of"].startswith("CT made of MR without") and (a["subject"], a["translator"]) == (b["subject"], b["translator"])]
effect = f"taking the laminae out of the MR changes their recall by {np.mean([b - a for a, b in pairs]):+.2f} on average, {min(b - a for a, b in pairs):+.2f} to {max(b - a for a, b in pairs):+.2f} over {len(pairs)} pairs"
false = {w: float(np.mean([r["false_share"] for r in table if r["bone_of"] == w])) for w in ways}
notes = ["All scans are phantoms: nothing here is a claim about patients."] + [f"{w}: " + ", ".join(f"{p} {v:.2f}" for p, v in m.items()) + f"; {false[w]:.0%} of the mask is no bone" for w, m in mean.items()] + [blame, effect]
headline = {f"lamina recall, {w}": round(m["lamina"], 3) for w, m in mean.items()} | {f"laminae missing, {w}": c for w, c in counts.items()}
taught = {part: [dict(r, taught=r["bone_of"].partition("taught by ")[2]) for r in table if r["part"] == part and r["bone_of"].startswith("CT made of MR with laminae")] for part in (("lamina", "body") if trainings else ())}
answers = judge([q for part, rows in taught.items() for q in ask(rows, "taught", "recall", part=part)])
for a in answers: run.row("answer", a)
for part, rows in taught.items():
    band, mine = bands(rows, "taught", "recall"), [a for a in answers if a["part"] == part]
    says = "; ".join(a["says"] for a in mine)
    headline[f"recall of the {part}, by the CTs that taught"] = mine[0]["word"]
    notes.append(f"Recall of the {part} in a CT made of an MR that shows the laminae, {config.steps} updates each: {says} (" + "; ".join(f"{t} {low:.2f} to {high:.2f} around {m:.2f}" for t, (low, m, high) in band.items()) + ").")
result = finish_run(run, headline=headline, table=table, cost=dict(updates=config.steps*len(trainings), trainings=len(trainings)), data="phantom", data_digest=digest(*files), notes=notes + [config.note]*bool(config.note))

# %% [markdown]
# ## Conclusion
#
# What came is in the record, not typed here.

# %%
print(*notes[1:], sep="\n")
for r in table:
    if r["part"] == "lamina": print(f"{r['bone_of']} {r['translator']}: {r['says']}")
