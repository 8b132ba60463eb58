# %% [markdown]
# # All the same
#
# **Question.** The spine note saw four trainings: with the updated U-Net all 15 test results were one volume (B33, B34), with batch 16 they looked alike (B35, B36), with gradient consistency alike and worse (B39, B40), with spectral norm
# they could be told apart and paired with their MR (B42, B43). Do short trainings on phantoms with the same settings show this? And what does show it?
#
# **Prediction, before any run.** The note's test folder held one person and varieties of that person: it alone gives 15 results that are one volume, from any translator. On different people no setting of the four
# gives one volume. The stored form of gradient consistency changes nothing at all, since no gradient leads from it.
#
# The four runs in small: whole volumes, the note's networks, batches and weights, three people with a CT, turns and noise as augmentation; and updates as the note's runs had them, 4 : 1 : 2 : 8. Then the same first
# run broken in three ways, networks before their first update, and three translators that are no network. Each translates six people, 15 noisy varieties of one of them, and 15 turned ones.
#
# The default is a smoke run of seconds, which proves that the path is whole and nothing else.

# %% tags=["parameters"]
name = "smoke"           # of the run, free text
seeds = "0"
people_mr = 2            # phantoms to train on
people_ct = 2            # the note had three
testers = 4              # phantoms to test on; their CT is hidden from training
varieties = 4            # of one person, in each of two folders
anatomy = 0              # seed of the phantoms: another one makes other people
extent_mm = "60,60,60"   # of the phantoms, along x, y, z
spacing_mm = 6.0         # voxel size
ct_range = "-300,900"    # HU that become -1 and 1
patch = 10               # voxels a side
turn_sd = 10.0           # degrees, of the augmentation
noise_sd = 0.05          # in ranges of the scan
updates = 1              # of the run with batch 16; the others have 2, 4 and 8 times as many
full_batches = False     # batches of 16 and 8 as in the note; else 2 in their place
width = 2
disc_width = 2
disc_layers = 1
lr = 0.002
lr_disc = 0.0004
threads = 1              # CPU threads; 0 leaves the setting
note = ""                # a sentence for the page
resume = False           # go on in the folder of a stopped run
out = ""                 # folder of the run; "" makes runs/symptoms-<time>

# %%
from dataclasses import asdict, dataclass, fields

import matplotlib.pyplot as plt
import numpy as np
import torch

from medseg.data.manifest import data_digest, read_manifest, split_items
from medseg.data.spinecohort import make_spine_cohort
from medseg.data.unpaired import PatchDraw, draw_record, load_sides, make_patch, make_scan, unpaired_batches, unscale_ct
from medseg.log.runs import finish_run, read_json, resume_run, start_run
from medseg.train.statistics import SURE, ask, judge
from medseg.translate.audit import InertLoss
from medseg.translate.axis import curvature_agreement
from medseg.translate.coverage import effective_subjects
from medseg.translate.predict import load_translator, save_translator
from medseg.translate.settings import Settings
from medseg.translate.step import CycleGAN, fit_cyclegan
from medseg.translate.trial import Plan, Tester, alike, changed, examine, read_testers, same_person, shows_sameness
from medseg.volumes.files import write_json
from medseg.volumes.volume import Volume

# %% [markdown]
# ## Config

# %%
@dataclass(frozen=True)
class Config:
    name: str; seeds: str; people_mr: int; people_ct: int; testers: int; varieties: int; anatomy: int; extent_mm: str; spacing_mm: float; ct_range: str; patch: int; turn_sd: float; noise_sd: float; updates: int
    full_batches: bool; width: int; disc_width: int; disc_layers: int; lr: float; lr_disc: float; threads: int; note: str

    def __post_init__(self):
        if min(self.testers, self.varieties) < 4 or self.updates < 1 or len(set(self.every_seed)) < len(self.every_seed): raise ValueError(f"testers and varieties must be 4 or more, since no fewer can be paired beyond chance, updates 1 or more, and seeds must differ, got {self.testers}, {self.varieties}, {self.updates} and {self.seeds!r}")

    @property
    def every_seed(self): return [int(s) for s in self.seeds.split(",")]
    @property
    def window(self): return tuple(map(float, self.ct_range.split(",")))


config = Config(**{f.name: globals()[f.name] for f in fields(Config)})
large, half = (16, 8) if full_batches else (2, 2)
base = Plan(Settings("unet_updated", width, disc_width=disc_width, disc_layers=disc_layers, steps=4*updates, lr=lr, lr_disc=lr_disc, decay_from=1., ema=.9, spacing=(spacing_mm,)*3),
            PatchDraw((patch,)*3, 2, turn_sd=turn_sd, noise_sd=noise_sd))
loss_run = base.but(generator="unet_old", batch=half, cycle=3., steps=2*updates, one_backward=True)
plans = {
    "B33": base,
    "B35": base.but(generator="unet_old", batch=large, steps=updates),
    "B39 stored": loss_run.but(gradient=1., signed=True),
    "B39 without the loss": loss_run,
    "B39 working, signed": loss_run.but(gradient=1., signed=True),
    "B39 working, unsigned": loss_run.but(gradient=1.),
    "B42": base.but(spectral=True, disc_spectral=True, steps=8*updates),
    "no cycle, no identity": base.but(cycle=0., identity=0.),
    "strong discriminator": base.but(lr_disc=10*lr_disc, adversarial=10.),
    "both": base.but(cycle=0., identity=0., lr_disc=10*lr_disc, adversarial=10.)}
NOTE, BROKEN, UNTRAINED = ("B33", "B35", "B39 stored", "B42"), [n for n in plans if not n.startswith("B")], ("B33", "B35", "B42")
run = (resume_run if resume else start_run)("symptoms", asdict(config), out)

# %% [markdown]
# ## Three folders to be tested on
#
# Different people; one person with noise as the note added it (mean within ± 0.1, spread 0.01, 0.05 or 0.1 of the range); the same person turned by angles from N(0, 10°).

# %%
cohort = run.folder/"cohort"/"manifest.csv"
if not cohort.exists(): make_spine_cohort(cohort.parent, people_mr, people_ct, testers, anatomy, (spacing_mm,)*3, (spacing_mm,)*3, tuple(map(float, extent_mm.split(","))), "t2", workers=1)
mr, ct = load_sides(split_items(read_manifest(cohort), seed=0)[0], spacing_mm, config.window)
people = read_testers(cohort)


def varied(person, how): # the person's MR, changed in so many ways
    scan = make_scan(person.name, person.mr, "MR")
    drawn = [draw_record([scan], how, np.random.default_rng((anatomy, k))) for k in range(varieties)]
    truth, quiet = make_scan(person.name, person.ct, "CT", ct_range=config.window), dict(mean=0., sd=0., stretch=None)
    def answer(record): return Volume(unscale_ct(make_patch(truth, record | quiet), config.window), person.ct.affine)
    return [Tester(f"{person.name}_{k}", Volume(make_patch(scan, record), person.mr.affine), answer(record)) for k, record in enumerate(drawn)]


size = people[0].mr.shape
folders = dict(people=people, noisy=varied(people[0], PatchDraw(size, noise_sd=(.01, .05, .1), noise_mean=.1, flip=False)), turned=varied(people[0], PatchDraw(size, turn_sd=10., flip=False)))
for where, part in folders.items():
    found = effective_subjects([t.mr.voxels for t in part], people[0].mr.spacing)
    run.row("folder", dict(folder=where, files=len(part), subjects=found["subjects"]))
    print(f"{where}: {len(part)} files of {found['subjects']} people, as the audit of a test folder sees it")

# %% [markdown]
# ## Run
#
# Two CTs are told apart by eye by their HU, so the mean difference of two made CTs is held against that of two true ones. It is needed: the count of effective volumes evens out contrast, and takes faint differences for full ones.
#
# Each training of the first seed is audited in its first steps. The stored form of gradient consistency has a value and no gradient. The audit of the training stops it by name; to see what it did, it is trained without the audit.

# %%
def kept(label, seed, end="json"): return run.folder/"trainings"/f"{label.replace(' ', '_').replace(',', '')}_{seed}.{end}"


def as_stored(model):
    whole = model.terms.of_fake
    model.terms.of_fake = lambda *a: {k: (lambda f=f: f().detach()) if k.startswith("gradient") else f for k, f in whole(*a).items()}
    return model


def apart(cts): # HU, within the range that the networks can give
    seen = [np.clip(v.voxels.astype(float), *config.window) for v in cts]
    return float(np.mean([np.abs(a - b).mean() for i, a in enumerate(seen) for b in seen[:i]]))


def bends(part, made): # whether the made CTs are bent as their MRs are, 1 if all are
    return curvature_agreement([t.mr.voxels.astype(float) for t in part], [v.voxels.astype(float) for v in made], part[0].mr.spacing)


def marks_of(label, about, net, p): # a row for each folder
    found = []
    for where, part in folders.items():
        rows, made = examine(net, p.recipe(config.window), part)
        found.append(dict(label=label, **about, folder=where, files=len(part), **{k: rows[0][k] for k in ("pairing", "chance", "p", "effective", "effective_mr", "diversity_ratio")}, apart_hu=apart(made), mae_hu=float(np.mean([r["mae_hu"] for r in rows])) if where == "people" else None, of_each={r["subject"]: r["mae_hu"] for r in rows} if where == "people" else {}, bends=bends(part, made) if where == "people" else None))
    return found


if threads: torch.set_num_threads(threads)
first = config.every_seed[0]
jobs = [(label, seed) for seed in config.every_seed for label in plans]
total = sum(plans[label].settings.steps for label, _ in jobs)
if resume: run.rewind(sum(plans[label].settings.steps for label, seed in jobs if kept(label, seed).exists()))
said, before = "", 0
try: next(fit_cyclegan(as_stored(CycleGAN(plans["B39 stored"].settings)), unpaired_batches(mr, ct, plans["B39 stored"].draw, 1)))
except InertLoss as e: said = str(e)
print("the audit says:", said)

# %%
for label, seed in jobs:
    p, stored = plans[label].but(seed=seed), label == "B39 stored"
    if not kept(label, seed).exists():
        model = (as_stored if stored else lambda m: m)(CycleGAN(p.settings))
        found = marks_of(label, dict(seed=seed, step=0), model.translator(), p) if label in UNTRAINED else []
        for row in fit_cyclegan(model, unpaired_batches(mr, ct, p.draw, p.settings.steps), check=seed == first and not stored):
            run.row("train", dict(label=label, seed=seed, step=before + row["step"], steps=total, loss=sum(v for k, v in row.items() if k.startswith("cycle")) or row["adversarial_ct"]))
            if model.done in (updates, 4*updates, p.settings.steps): found += marks_of(label, dict(seed=seed, step=model.done), model.translator(), p)
        save_translator(kept(label, seed, "safetensors"), model.translator(), p.recipe(config.window), dict(label=label, seed=seed, step=model.done))
        write_json(kept(label, seed), found)
    before += p.settings.steps
table = [row for job in jobs for row in read_json(kept(*job))]

# %% [markdown]
# Three translators that are no network: one gives every MR the mean of the training CTs, one passes the MR on, and one, the healthiest there could be, gives the true CT. They show what the numbers can tell.

# %%
class Constant(torch.nn.Module):
    def __init__(self, answer): super().__init__(); self.answer = torch.from_numpy(answer)
    def forward(self, x): return self.answer[None, None].expand_as(x).clone()


whole = base.but(size=size)
mean_ct = np.mean([make_patch(s, draw_record([s], PatchDraw(size, flip=False), np.random.default_rng(0))) for s in ct], 0)
controls = {"one CT for all": Constant(mean_ct), "MR passed on": torch.nn.Identity()}
for label, net in controls.items(): table += marks_of(label, dict(seed=0, step=0), net, whole)
for where, part in folders.items(): table.append(dict(label="the true CT", seed=0, step=0, folder=where, files=len(part), **same_person(part, [t.ct for t in part], config.window), apart_hu=apart([t.ct for t in part]), mae_hu=0. if where == "people" else None, bends=bends(part, [t.ct for t in part]) if where == "people" else None))
controls["the true CT"] = None
for row in table: row["share"] = row["apart_hu"]/apart([t.ct for t in people])
for row in table: run.row("marks", row)


def at(label, folder, step=None): # rows of the last step, or of one on the way; one a seed
    rows = [r for r in table if r["label"] == label and r["folder"] == folder]
    return [r for r in rows if r["step"] == (max(q["step"] for q in rows) if step is None else step)]


def span(rows, key, digits=1): return f"{min(r[key] for r in rows):.{digits}f} to {max(r[key] for r in rows):.{digits}f}"


for label in [*plans, *controls]: print(f"{label:24}", "; ".join(f"{f}: {span(at(label, f), 'effective')} volumes, {span(at(label, f), 'share', 2)} as far apart as true CTs, pairing {span(at(label, f), 'pairing', 2)}" for f in folders))

# %% [markdown]
# ## What became of the note's observations
#
# The made CTs are alike if they are fewer than two effective volumes, or not a quarter as far apart as the true CTs of different people (a line drawn by eye, after the first trainings had been seen); and they can be paired with their MR if that goes better than by chance (p below 0.01); from every seed. That all are alike is *confirmed* if it comes out of every seed on files whose true CTs are
# not alike: on one person's varieties the right answer shows the symptom too, so there it proves nothing. Another observation is *confirmed* if its symptom comes out of every seed. Any is *refuted* if the opposite is proven, and *unresolved* if the small form does not show it or luck may do it: a short training on phantoms cannot take back what was seen.

# %%
def paired(rows): return all(r["p"] < SURE for r in rows)


def same_weights(a, b, seed): return all(torch.equal(x, y) for x, y in zip(*(load_translator(kept(n, seed, "safetensors"))[0].parameters() for n in (a, b))))


def look(label, step=None):
    rows = {f: at(label, f, step) for f in folders}
    def said(f, files): return f"{span(rows[f], 'effective')} volumes of {files}, {span(rows[f], 'share', 2)} as far apart as true CTs"
    return f"{said('people', f'{testers} people')}, pairing {span(rows['people'], 'pairing', 2)} (chance {1/testers:.2f}), bends that agree {span(rows['people'], 'bends', 2)}; {said('noisy', f'{varieties} noisy files of one person')}; {said('turned', f'{varieties} turned ones')}"


def observed(row, claim, label): # whether all outputs are alike
    on_people, on_one = alike(at(label, "people")), alike(at(label, "noisy"))
    course = ", ".join(f"{span(at(label, 'people', k), 'share', 2)} after {k}" for k in sorted({r["step"] for r in table if r["label"] == label}))
    folder = f"A folder of one person's varieties is one volume even for the true CTs ({span(at('the true CT', 'noisy'), 'effective')} of {varieties})" + (", and for these translators" if on_one else f", but not for these translators, which make other volumes of other noise ({span(at(label, 'noisy'), 'effective')})")
    why = ("Different people come out all but the same after so few updates" if on_people else "Different people come out as different volumes" + ("" if paired(at(label, "people")) else ", which cannot be paired with their MR from every seed")) + f" (apart, as a share of true CTs: {course} updates). {folder}."
    return dict(row=row, claim=claim, symptom="yes" if on_people else "only on one person's varieties, as of the true CTs" if on_one else "no", number=look(label), status="confirmed" if shows_sameness(at(label, "people"), at("the true CT", "people")) else "unresolved", why=why)


def errors(a, b, step): # of two runs at as many updates: a question, and the numbers
    rows = [dict(run=n, seed=r["seed"], subject=who, mae_hu=v) for n in (a, b) for r in at(n, "people", step) for who, v in r["of_each"].items()]
    return ask(rows, "run", "mae_hu"), "; ".join(f"{n} {span(at(n, 'people', step), 'mae_hu')}" for n in (a, b))


few = len(config.every_seed) < 3
b34 = observed("B34", "updated U-Net, batch 2: all 15 test outputs are one volume", "B33")
b36 = observed("B36", "old U-Net, batch 16: outputs look alike", "B35")
b40 = observed("B40", "gradient consistency, cycle 3, batch 8: no diversity", "B39 stored")
equal = [same_weights("B39 stored", "B39 without the loss", s) for s in config.every_seed]
asked = [errors("B39 without the loss", f"B39 working, {kind}", 2*updates) for kind in ("signed", "unsigned")] + [errors("B33", "B42", 4*updates)]
answers = iter(judge([q for questions, _ in asked for q in questions]))
told = [([next(answers) for _ in questions], number) for questions, number in asked]
worse = dict(row="B40", claim="worse than batch 16 because of gradient consistency", symptom="no" if all(equal) else "yes", number=f"{sum(equal)} of {len(equal)} seeds: weights with the stored loss equal those without it, bit for bit; a working one, HU: " + ". ".join(f"{number}; {'; '.join(a['says'] for a in mine)}" for mine, number in told[:2]),
             status="refuted" if all(equal) else "unresolved", why="The stored form trains nothing, so it cannot have made anything worse; batch, updates and cycle weight differed as well." if all(equal) else "The stored form changed the weights.")
fine = paired(at("B42", "people"))
b43 = dict(row="B43", claim="spectral norm, batch 2: outputs can be paired with their MR", symptom="yes" if fine else "no", number=look("B42"), status="confirmed" if fine else "unresolved",
           why="From every seed the outputs are paired with their MR better than by chance" + (", and so they are without spectral norm (B33)." if paired(at("B33", "people")) else ".") if fine else "Not from every seed.")
mine, number = told[2]
lower = mine[0]["word"] == "resolved" and mine[0]["difference"] < 0
says = "; ".join(a["says"] for a in mine)
best = dict(row="B43", claim="spectral norm gave the best results", symptom="yes" if lower else "no", number=f"after {4*updates} updates each, HU: {number}; {says}", status="confirmed" if lower else "refuted" if mine[0]["word"] == "resolved" else "unresolved",
            why="At as many updates and the same batch " + f"the error is {mine[0]['word']}" + "; the note's B42 had twice the updates of its B33.")
def cause(claim, label, step=None):
    rows = at(label, "people", step)
    return dict(row="cause", claim=claim, symptom="yes" if alike(rows) else "no", number=look(label, step), status="confirmed" if alike(rows) else "refuted",
                why=("Different people come out as one volume." if alike(rows) else "Different people come out as different volumes here") + ("" if alike(rows) else "." if paired(rows) else ", but they cannot be paired with their MR from every seed."))


def broken(label): # beside the unbroken trainings from the same seeds, at as many updates
    rows, whole = at(label, "people"), at("B33", "people")
    every = alike(rows) and not few and not any(alike([r]) for r in whole)
    return cause(label, label) | dict(status="confirmed" if every else "unresolved", why=f"From {len(rows)} seed{'s' if len(rows) > 1 else ''} {span(rows, 'share', 2)} as far apart as true CTs, {sum(alike([r]) for r in rows)} of {len(rows)} all alike; unbroken, B33, {span(whole, 'share', 2)} and {sum(alike([r]) for r in whole)} of {len(whole)}."
                + (" One seed names no cause." if few else ""))


trap = dict(cause(f"a test folder of {varieties} noisy files of one person, translator in perfect health", "the true CT"), symptom="yes" if alike(at("the true CT", "noisy")) else "no", status="confirmed" if alike(at("the true CT", "noisy")) else "refuted",
            why=f"The folder alone does it: {span(at('the true CT', 'noisy'), 'effective')} of {varieties} true CTs and {span(at('MR passed on', 'noisy'), 'effective')} of {varieties} MRs passed on are different volumes; of {testers} people {span(at('the true CT', 'people'), 'effective')} and {span(at('MR passed on', 'people'), 'effective')}.")
causes = [trap] + [broken(n) for n in BROKEN] + [cause(n, n) for n in controls if n != "the true CT"] + [cause(f"{n} before its first update", n, 0) for n in UNTRAINED]
verdicts = [b34, b36, b40, worse, b43, best] + causes
for v in verdicts:
    run.row("verdict", v)
    print(f"{v['row']}: {v['claim']}: {v['status']}. {v['why']} {v['number']}.")

# %% [markdown]
# ## Artefacts

# %%
seed = config.every_seed[0]
few_shown, middle = min(4, testers, varieties), size[0]//2
fig, axs = plt.subplots(5, 2*few_shown, figsize=(1.25*2*few_shown, 7.2), layout="constrained", squeeze=False)
for i, (where, part) in enumerate((w, folders[w]) for w in ("people", "noisy")):
    for k, t in enumerate(part[:few_shown]):
        axs[0, i*few_shown + k].imshow(t.mr.voxels[middle].T, cmap="gray", origin="lower"); axs[0, i*few_shown + k].set_title(f"{'person' if i == 0 else 'noise'} {k + 1}", fontsize=8)
    for n, label in enumerate(NOTE, 1):
        for k, v in enumerate(examine(*load_translator(kept(label, seed, "safetensors")), part[:few_shown])[1]): axs[n, i*few_shown + k].imshow(v.voxels[middle].T, cmap="gray", origin="lower", vmin=config.window[0], vmax=config.window[1])
for n, label in enumerate(("MR", *NOTE)): axs[n, 0].set_ylabel(label, fontsize=8)
for ax in axs.flat: ax.set_xticks([]); ax.set_yticks([])
run.figure(fig, f"folders_seed_{seed}", f"Left different people, right noisy varieties of one of them; below each MR what the four trainings make of it, seed {seed}. Phantoms.")

# %%
shown = [*plans, *controls]
fig, axs = plt.subplots(2, 3, figsize=(10, 1.2 + .5*len(shown)), layout="constrained", sharey=True)
for ax, (where, part), key in zip(axs.flat, [*folders.items()]*2, ["effective"]*3 + ["share"]*3):
    for y, label in enumerate(shown[::-1]): ax.plot([r[key] for r in at(label, where)], [y]*len(at(label, where)), "o", alpha=.6, color="tab:red" if alike(at(label, where)) else "tab:green" if paired(at(label, where)) else "tab:orange")
    ax.axvline(1, color="k", lw=.6); ax.set_xlim(left=0); ax.set_yticks(range(len(shown)), shown[::-1], fontsize=8); ax.set_title({"people": f"{testers} people", "noisy": f"{varieties} noisy files of one", "turned": f"{varieties} turned files of one"}[where], fontsize=9); ax.set_xlabel("effective volumes among the made CTs" if key == "effective" else "how far apart, as a share of true CTs", fontsize=8)
run.figure(fig, "effective", "How many volumes the made CTs are, and how far apart, a dot for each seed. Red: all alike. Orange: not alike, but not to be paired with their MR. Green: paired. Phantoms.")

# %%
headline = {f"{v['row']}: {v['claim']}": v["status"] for v in verdicts if v["row"] != "cause"}
reproduced = [v["claim"] for v in causes if v["symptom"] == "yes" and v["status"] == "confirmed"]
headline["outputs that are all alike come from every seed with"] = "; ".join(reproduced) or "nothing"
notes = ["All scans are phantoms and all trainings short: nothing here is a claim about patients.", f"The audit of losses says of the stored form: {said}", f"Things that differ between B35 and B39 as the note ran them: {', '.join(changed(plans['B35'], plans['B39 stored'].but(one_backward=False)))}; no single cause can be named."]
notes += [f"{len(config.every_seed)} seeds are fewer than 3: no two models are compared."]*few
result = finish_run(run, headline, verdicts, dict(updates=total, trainings=len(jobs)), data="phantom", data_digest=data_digest(read_manifest(cohort)), notes=notes + [note]*bool(note))

# %% [markdown]
# ## Conclusion
#
# What came is in the record, not typed here. What the small form does not show is not thereby refuted: the note's volumes were real, larger and trained on for days.

# %%
print(f"{run.folder}:", "; ".join(f"{k}: {v}" for k, v in headline.items()))
