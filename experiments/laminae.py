# %% [markdown]
# # The missing laminae
#
# **Question.** The note's best model made bodies, discs and spinous processes but no laminae (row B37), and its author suspected that the MR did not show them (row B38). Which parts of the bone can be read out of a measured CT, of a CT made from an MR that shows the laminae, and of a CT made from an MR that does not?
#
# **Prediction, before any run.** From an MR without laminae there are none in the bone, bodies being as they were: the symptom of B37. From an MR that shows them a short training finds some, fewer than of the bodies: laminae are thin. So the symptom alone does not tell the cause; only looking at the MR does.
#
# Without translators this notebook trains one for seconds: a smoke run, which proves that the path is whole and nothing else.

# %% tags=["parameters"]
name = "smoke"          # of the run, free text
models = ""             # translators, .safetensors files with commas between; "" trains one
people = 1              # phantoms to look at
first = 1000            # number of the first
anatomy = 0             # seed of the phantoms
extent_mm = "78,96,66"  # of the phantoms, along x, y, z
scan_mm = 3.0           # voxel size of the scans
steps = 2               # of the training, if there is one
note = ""               # a sentence for the page
out = ""                # folder of the run; "" makes runs/laminae-<time>

# %%
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from medseg.data.unpaired import PatchDraw, make_scan, on_grid, unpaired_batches
from medseg.log.runs import finish_run, start_run
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
    name: str; models: str; people: int; first: int; anatomy: int; extent_mm: str; scan_mm: float; steps: int; note: str

    def __post_init__(self):
        if self.people < 1 or self.steps < 1: raise ValueError(f"people and steps must be at least 1, got {self.people} and {self.steps}")

    @property
    def scan(self): return dict(spacing=(self.scan_mm,)*3, extent_mm=tuple(map(float, self.extent_mm.split(","))))


config = Config(**{f.name: globals()[f.name] for f in fields(Config)})
run = start_run("laminae", asdict(config), out)

# %% [markdown]
# ## Run
#
# Each person has a CT, an MR, and an MR as it would be without laminae. All bone is judged against the true parts of the whole person.

# %%
files = [Path(f.strip()) for f in config.models.split(",") if f.strip()]
if not files:
    settings = Settings(generator="resnet1", width=4, disc_width=4, disc_layers=1, steps=config.steps, spacing=(6.,)*3)
    sides = [[make_scan("0", make(0, config.anatomy, **config.scan).image, kind, 6., (-300., 900.))] for make, kind in ((spine_mr, "MR"), (spine_ct, "CT"))]
    model, draw = CycleGAN(settings), PatchDraw((8, 8, 8))
    for row in fit_cyclegan(model, unpaired_batches(*sides, draw, config.steps)): run.row("train", row)
    files = [save_translator(run.folder/"model.safetensors", model.translator(), TranslateRecipe("resnet1", 4, patch=(8, 8, 8), spacing_mm=6., ct_range=(-300., 900.)), dict(run=config.name))]
who = range(config.first, config.first + config.people)
cts, shows, lacks = ({k: make(k, config.anatomy, **config.scan, **more) for k in who} for make, more in ((spine_ct, {}), (spine_mr, {}), (spine_mr, dict(laminae=False))))
inputs = {"MR with laminae": shows, "MR without": lacks}
body = {k: patient_mask(s.image) for k, s in cts.items()}


@cache
def seen(kind, k, part): return visible(inputs[kind][k].image, cts[k].labels, part)["visible"]


@cache
def coarse(k, mm): return bone_mask(resample_to(on_grid(cts[k].image, mm), cts[k].image), body=body[k])[0]

# %% [markdown]
# A translator works on coarse voxels, and on those a thin lamina is partly lost in a measured CT too. So there are four ways to bone: the measured CT, the measured CT on the translator's voxels, and the two made CTs, which are set against the second.

# %%
def told(ct_kind, k, translator, mask, like, kind=None):
    "A row for each part, with the sentence of the report."
    report = part_report(mask, cts[k].labels, None, cts[k].facts["levels"], like)
    for part, r in report["parts"].items():
        shown = seen(kind, k, part) if kind and part == "lamina" and r["state"] != "found" else None
        yield dict(bone_of=ct_kind, subject=k, translator=translator, part=part, recall=r["recall"], best=r["best"], state=r["state"], seen=shown, false_share=report["false_share"], says=sentence(part, r["state"], r["recall"], shown))


table, made = [], {}
for k in who:
    table += told("measured CT", k, "", bone_mask(cts[k].image, body=body[k])[0], None)
    for n, file in enumerate(files):
        net, recipe = load_translator(file)
        best = coarse(k, recipe.spacing_mm)
        if not n: table += told(f"measured CT, {recipe.spacing_mm:g} mm", k, "", best, None)
        for kind, scans in inputs.items():
            made[kind, k, n] = translate_scan(net, recipe, scans[k].image)[0]
            table += told(f"CT made of {kind}", k, file.stem, bone_mask(made[kind, k, n], body=body[k])[0], best, kind)
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
pairs = [(a["recall"], b["recall"]) for a in lamina for b in lamina if a["bone_of"] == "CT made of MR with laminae" and b["bone_of"] == "CT made of MR without" and (a["subject"], a["translator"]) == (b["subject"], b["translator"])]
effect = f"taking the laminae out of the MR changes their recall by {np.mean([b - a for a, b in pairs]):+.2f} on average, {min(b - a for a, b in pairs):+.2f} to {max(b - a for a, b in pairs):+.2f} over {len(pairs)} pairs"
false = {w: float(np.mean([r["false_share"] for r in table if r["bone_of"] == w])) for w in ways}
notes = ["All scans are phantoms: nothing here is a claim about patients."] + [f"{w}: " + ", ".join(f"{p} {v:.2f}" for p, v in m.items()) + f"; {false[w]:.0%} of the mask is no bone" for w, m in mean.items()] + [blame, effect]
headline = {f"lamina recall, {w}": round(m["lamina"], 3) for w, m in mean.items()} | {f"laminae missing, {w}": c for w, c in counts.items()}
result = finish_run(run, headline=headline, table=table, cost=dict(updates=0 if config.models else config.steps), data="phantom", data_digest=digest(*files), notes=notes + [config.note]*bool(config.note))

# %% [markdown]
# ## Conclusion
#
# What came is in the record, not typed here.

# %%
print(*notes[1:], sep="\n")
for r in table:
    if r["part"] == "lamina": print(f"{r['bone_of']} {r['translator']}: {r['says']}")
