"""Relatives among many: 42 unrelated phantoms and 64 derived items of all kinds.

Nothing missed, no two patients linked.
"""

from functools import lru_cache

import numpy as np
from medseg.data.fingerprint import fingerprint
from medseg.data.related import LINK, match_all, related
from medseg.phantoms.scanner import abdomen
from medseg.io.resample import resample
from medseg.io.volume import Volume, reorient
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

SPACINGS = ((6.0, 6.0, 7.0), (7.0, 7.0, 6.0), (6.5, 6.5, 8.0), (8.0, 8.0, 6.0))


@lru_cache(None)
def person(s):
    return abdomen(s, seed=14, spacing=SPACINGS[s % 4], thickness=1.0).ct


def people(n=42):
    return {f"p{s:02d}": person(s) for s in range(n)}


def turn(v, degrees, axis):
    spin = Rotation.from_rotvec(np.deg2rad(degrees) * np.eye(3)[axis]).as_matrix()
    step = np.diag(1 / np.array(v.spacing)) @ spin @ np.diag(v.spacing)
    middle = (np.array(v.shape) - 1) / 2
    return Volume(
        affine_transform(
            v.voxels.astype(np.float32),
            step,
            middle - step @ middle,
            order=1,
            cval=float(v.voxels.min()),
        ),
        v.affine,
    )


def derived(v, kind, rng):
    a, grey = v.voxels, float(np.ptp(np.percentile(v.voxels, (0.5, 99.5))))
    if kind == "identical":
        return Volume(a.copy(), v.affine)
    if kind == "re-saved":
        w = reorient(v, str(rng.choice(["LPS", "PIR", "ASL", "LAS"])))
        return Volume(w.voxels.astype(rng.choice(["f4", "f8", "i4"])), w.affine)
    if kind == "cropped":
        n = v.shape[2]
        k = min(n - 1, max(int(n * rng.uniform(0.45, 0.8)), int(np.ceil(90 / v.spacing[2]))))
        first = rng.integers(n - k + 1)
        return Volume(a[:, :, first : first + k], v.affine)
    if kind == "rotated":
        return turn(v, rng.uniform(5, 30) * rng.choice([-1, 1]), int(rng.integers(3)))
    if kind == "noised":
        return Volume(
            (
                a
                + grey
                * (
                    rng.uniform(-0.1, 0.1)
                    + rng.choice([0.01, 0.05, 0.1]) * rng.standard_normal(a.shape)
                )
            ).astype(np.float32),
            v.affine,
        )
    if kind == "resampled":
        return resample(v, tuple(np.array(v.spacing) * rng.uniform(0.7, 1.7, 3)))
    if kind == "intensity-scaled":
        return Volume(
            (a * rng.uniform(0.3, 3) + rng.uniform(-500, 500)).astype(np.float32), v.affine
        )
    return Volume(np.flip(a, int(rng.integers(3))), v.affine)


KINDS = (
    "identical",
    "re-saved",
    "cropped",
    "rotated",
    "noised",
    "resampled",
    "intensity-scaled",
    "flipped",
)


@lru_cache
def everything():
    scans, rng = people(), np.random.default_rng(8)
    made = {}
    for i in range(64):
        kind, source = KINDS[i % 8], f"p{(5*i) % 42:02d}"
        made[f"{source}_{kind}_{i}"] = derived(scans[source], kind, rng)
    return related({**scans, **made}), list(scans), list(made)


def test_every_copy_is_found_and_no_two_patients_are_linked():
    found, scans, made = everything()
    assert len(scans) >= 40 and len(made) >= 60

    def patient(name):
        return name[:3]

    wrong = [link for link in found["links"] if patient(link["a"]) != patient(link["b"])]
    assert wrong == []
    family = {name: group for group in found["groups"] for name in group}
    missed = [name for name in made if patient(name) not in family.get(name, ())]
    assert len(missed) <= 0.02 * len(made), missed
    direct = {(link["a"], link["b"]) for link in found["links"]}
    lost = [name for name in made if (patient(name), name) not in direct]
    assert len(lost) <= 0.02 * len(made), lost


def test_links_say_what_was_done():
    found, scans, made = everything()
    told = [
        (link["b"].split("_")[1], link["kind"].split("+"))
        for link in found["links"]
        if link["a"] in scans and link["b"] in made
    ]
    right = [kind in said for kind, said in told]
    assert np.mean(right) >= 0.9, [t for t, r in zip(told, right) if not r]
    assert all(LINK <= link["evidence"] <= 1 for link in found["links"])


def test_it_tells_its_own_false_alarms():
    report = everything()[0]["false_alarms"]
    assert report["pairs"] > 4000 and report["highest"] < LINK == report["threshold"]
    assert 0 <= report["rate"] < 2e-3 and report["second_look"] >= 20


def test_processes_do_not_change_the_answer():
    prints = [fingerprint(v) for v in people(5).values()]
    prints += prints[:2]
    assert match_all(prints, workers=2) == match_all(prints)
