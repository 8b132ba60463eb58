"""Relatives among small scans of few slices, whatever their orientation: phantoms, and the real MR
of MEDSEG_DATA if it is set.

`MEDSEG_DATA=folder python tests/test_field_related.py` says recall and false links of the real
scans and their copies.
"""

import os
import zlib
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from medseg.data.fingerprint import fingerprint
from medseg.data.related import LINK, match_all
from medseg.io.read import read_volume
from medseg.io.resample import resample
from medseg.io.volume import Volume, reorient
from scipy.ndimage import affine_transform, gaussian_filter

REAL = Path(os.environ["MEDSEG_DATA"]) if os.environ.get("MEDSEG_DATA") else None


def turned(v, degrees, axis):
    "`v` turned in the plane of its slices."
    a, b = (i for i in range(3) if i != axis)
    angle, spin, size = np.deg2rad(degrees), np.eye(3), np.array(v.spacing)
    spin[a, a] = spin[b, b] = np.cos(angle)
    spin[a, b], spin[b, a] = -np.sin(angle), np.sin(angle)
    step, middle = np.diag(1 / size) @ spin @ np.diag(size), (np.array(v.shape) - 1) / 2
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


def family(v, rng, axis):
    "A scan and its five copies; slices lie along `axis`."
    a, n = v.voxels.astype(np.float32), v.shape[axis]
    first = int(rng.integers(n - n // 2 + 1))
    return [
        v,
        turned(v, rng.normal(0, 10), axis),
        Volume(a + 0.1 * a.std() * rng.standard_normal(a.shape, np.float32), v.affine),
        Volume(a.take(range(first, first + n // 2), axis), v.affine),
        resample(Volume(a, v.affine), tuple(1.5 * np.array(v.spacing))),
        Volume(np.flip(a, (axis + 1) % 3) * 1.7 + 30, v.affine),
    ]


def judged(families):
    "Pairs within families, how many of them are linked, and links between families."
    prints = [(name, fingerprint(v)) for name, members in families.items() for v in members]
    links = [
        (prints[i][0], prints[j][0])
        for i, j, evidence, _ in match_all([f for _, f in prints])
        if evidence >= LINK
    ]
    true = sum(len(list(combinations(members, 2))) for members in families.values())
    return true, sum(a == b for a, b in links), [link for link in links if link[0] != link[1]]


def texture(seed, shape, size, dark, codes):
    """A phantom of 20 slices: blobs of three sizes in an oval body.

    `dark` makes most of it dark, as in a T2 MR.
    """
    rng, step = np.random.default_rng(seed), np.array(size)
    blobs = sum(
        gaussian_filter(rng.standard_normal(shape), mm / step) * mm**1.5 for mm in (5.0, 8.0, 14.0)
    )
    body = (
        np.hypot(*np.meshgrid(*(np.linspace(-1.1, 1.1, n) for n in shape[:2]), indexing="ij"))[
            ..., None
        ]
        < 1
    )
    value = np.exp(blobs / blobs.std()) if dark else blobs / blobs.std() + 5
    return reorient(
        Volume(np.where(body, 100 * value, 0).astype(np.float32), np.diag([*size, 1.0])), codes
    )


# where the array axes lead: slices along the last, the first and the middle one
CODES = "RAS", "SRA", "RSA"


@pytest.mark.parametrize(
    "dark, shape, size",
    [(True, (80, 70, 20), (2.0, 2.0, 3.0)), (False, (90, 80, 20), (1.5, 1.5, 4.0))],
    ids=["mr", "ct"],
)
def test_few_slices_of_any_orientation(dark, shape, size):
    scans = {codes: texture(k, shape, size, dark, codes) for k, codes in enumerate(CODES)}
    families = {
        name: family(v, np.random.default_rng(n), int(np.argmin(v.shape)))
        for n, (name, v) in enumerate(scans.items())
    }
    true, found, wrong = judged(families)
    assert true == 45 and found >= 44 and wrong == []


def real_families(axis_of):
    "The seven real MR of spines and their copies."
    scans = {p.parent.name: read_volume(p) for p in sorted(REAL.glob("mr_spine/*/mr*.nii.gz"))}
    return {
        name: family(v, np.random.default_rng(zlib.crc32(name.encode())), axis_of(v))
        for name, v in scans.items()
    }


@pytest.mark.skipif(
    not REAL or not (REAL / "mr_spine").is_dir(),
    reason="MEDSEG_DATA is not set, no real file was looked at",
)
def test_real_spines_and_their_copies():
    true, found, wrong = judged(real_families(lambda v: int(np.argmin(v.shape))))
    assert true == 105 and found >= 0.98 * true and wrong == []


if __name__ == "__main__":
    for told, axis_of in (
        ("slices along the shortest axis", lambda v: int(np.argmin(v.shape))),
        ("slices along the last axis", lambda v: 2),
    ):
        true, found, wrong = judged(real_families(axis_of))
        print(
            f"{told}: {found} of {true} pairs linked, recall {found/true:.3f}; false links:"
            f" {wrong or 'none'}",
            flush=True,
        )
