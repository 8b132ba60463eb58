"Bone from HU to millimetres: thresholds, warnings, mesh and command, over chapters."

import json
import struct

import numpy as np
import pytest
from command import medseg
from skimage.filters import threshold_otsu

from medseg.segment.metrics import dice_score
from medseg.bone.threshold import (
    METHODS,
    bone_mask,
    bone_threshold,
    bone_uncertainty,
    contrast_ml,
    patient_mask,
    threshold_curve,
    threshold_tolerance,
)
from medseg.bone.mesh import bone_mesh, surface_mesh, write_mesh
from medseg.translate.scores import otsu
from medseg.phantoms.scanner import abdomen
from medseg.io.read import read_volume
from medseg.phantoms.spine_scanner import spine_ct
from medseg.phantoms.vertebra import BONE
from medseg.io.volume import ORIENTATIONS, Volume, reorient
from medseg.io.write import write_volume

AT = dict(spacing=(2.0, 2.0, 3.0), extent_mm=(84.0, 108.0, 96.0))


@pytest.fixture(scope="module")
def scan():
    return spine_ct(4, **AT)


@pytest.fixture(scope="module")
def true(scan):
    return np.isin(scan.labels.voxels, BONE)


@pytest.mark.parametrize("seed", range(4))
def test_otsu_is_exact_on_whole_numbers(seed):
    """The same two classes as scikit-image with one bin for each HU, and no threshold leaves less
    spread within them.
    """
    rng = np.random.default_rng(seed)
    hu = (
        np.concatenate(
            [
                rng.normal(rng.uniform(-100, 80), 30, 4000),
                rng.normal(rng.uniform(200, 700), 120, rng.integers(50, 2000)),
            ]
        )
        .round()
        .astype(np.int16)
    )
    t = otsu(hu)
    assert np.array_equal(hu > t, hu > threshold_otsu(hu, nbins=int(np.ptp(hu)) + 1))
    within = [
        (hu <= k).sum() * hu[hu <= k].var() + (hu > k).sum() * hu[hu > k].var()
        for k in range(hu.min(), hu.max())
    ]
    assert np.isclose(
        (hu <= t).sum() * hu[hu <= t].var() + (hu > t).sum() * hu[hu > t].var(), min(within)
    )


def test_otsu_of_a_whole_scan_finds_the_skin():
    ct = abdomen(2, spacing=(5.0, 5.0, 8.0)).ct
    assert otsu(ct.voxels) < -300, "between air and patient"
    mask, facts = bone_mask(ct)
    body = patient_mask(ct)
    assert mask.voxels.sum() < 0.2 * (ct.voxels > otsu(ct.voxels)).sum() and facts[
        "volume_ml"
    ] == round(float(mask.voxels.sum() * ct.voxel_ml), 2)
    assert (
        not (mask.voxels.astype(bool) & ~body).any() and (ct.voxels[~body] > -300).any()
    ), "the table is no patient"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_bone_and_turns_with_the_scan(scan, true, method):
    mask, facts = bone_mask(scan.image, method)
    assert (
        dice_score(mask.voxels.astype(bool), true) > 0.6
        and facts["method"] == method
        and not facts["warnings"]
    )
    turned, again = bone_mask(reorient(scan.image, "PIL"), method)
    assert again == facts and np.array_equal(
        reorient(turned, scan.image.axcodes).voxels, mask.voxels
    )


def test_the_threshold_follows_the_scan(scan):
    "No constant would pass: thresholds move with the grey values."
    for method in METHODS[:4]:
        one, other = (
            bone_threshold(v, method) for v in (scan.image.voxels, scan.image.voxels * 1.3)
        )
        assert 1.1 < other / one < 1.5, method


def test_curve_equals_dice_and_volume_at_every_threshold(scan, true):
    body = patient_mask(scan.image)
    rows = threshold_curve(scan.image, true, body)
    for r in rows[::120]:
        mask = (scan.image.voxels > r["threshold_hu"]) & body
        assert np.isclose(r["dice"], dice_score(mask, true)) and np.isclose(
            r["volume_ml"], mask.sum() * scan.image.voxel_ml
        )
    reach = threshold_tolerance(rows)
    assert reach["low_hu"] < reach["best_hu"] < reach["high_hu"] and reach["best_dice"] == max(
        r["dice"] for r in rows
    )


def test_contrast_and_metal_warn_and_their_absence_does_not():
    for subject in (29,):
        plain, agent = (
            spine_ct(subject, spacing=(3.0, 3.0, 3.0), contrast=c) for c in (False, True)
        )
        assert not bone_mask(plain.image)[1]["warnings"]
        assert "not bone from everything else" in " ".join(bone_mask(agent.image)[1]["warnings"])
        assert (
            contrast_ml(agent.image.voxels, patient_mask(agent.image), agent.image.spacing)[0]
            < agent.facts["ml"]["vessel"]
        )
    metal = spine_ct(4, metal=True, **AT).image
    (told,) = [w for w in bone_mask(metal)[1]["warnings"] if w.startswith("metal")]
    assert float(told.split()[1]) == pytest.approx(
        (metal.voxels[patient_mask(metal)] > 2500).sum() * metal.voxel_ml, abs=0.06
    )
    assert (
        bone_mask(metal)[1]["threshold_hu"] < 400 < otsu(metal.voxels[metal.voxels > -200])
    ), "screws do not draw the threshold"


def test_uncertain_voxels_are_where_errors_are(scan, true):
    share, facts = bone_uncertainty(scan.image)
    wrong, sure = (share.voxels > 0.5) != true, np.isin(share.voxels, (0, 1))
    assert wrong[~sure].mean() > 5 * wrong[sure].mean()
    assert (
        facts["low_ml"] < facts["volume_ml"] < facts["high_ml"]
        and facts["sure_ml"] <= facts["low_ml"]
    )
    assert facts["unsure_ml"] == pytest.approx((~sure).sum() * scan.image.voxel_ml)
    noisy = [
        Volume(
            scan.image.voxels + np.random.default_rng(k).normal(0, 80, true.shape),
            scan.image.affine,
        )
        for k in range(3)
    ]
    assert (
        bone_uncertainty(noisy, sweep=(0,))[1]["unsure_ml"]
        > bone_uncertainty([scan.image] * 3, sweep=(0,))[1]["unsure_ml"]
        == 0
    )


def ball(spacing, radius, middle):
    "mm inside a ball whose middle lies between voxels."
    n = [int(2 * (radius + 6) / s) + 2 for s in spacing]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.subtract(middle, radius + 6)
    at = np.moveaxis(np.indices(n), 0, -1) * spacing + affine[:3, 3]
    return radius - np.linalg.norm(at - middle, axis=-1), affine


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 1, 3), (0.7, 0.7, 5), (4, 1.3, 1)])
def test_a_ball_keeps_its_volume_and_place(spacing):
    inside, affine = ball(spacing, 21.0, (11.3, -40.7, 5.9))
    full = 4 / 3 * np.pi * 21**3 / 1000
    mesh = surface_mesh(inside, affine, 0, step_mm=1)
    r = np.linalg.norm(mesh.vertices - (11.3, -40.7, 5.9), axis=1)
    assert abs(mesh.volume_ml / full - 1) < 0.01 and abs(r - 21).mean() < 0.05 and mesh.closed
    rough = bone_mesh(inside > 0, spacing)
    assert abs(rough.volume_ml / full - 1) < 0.01 and rough.closed
    assert abs(rough.volume_ml / ((inside > 0).sum() * np.prod(spacing) / 1000) - 1) < 0.01


@pytest.mark.parametrize("codes", ORIENTATIONS[::9])
def test_a_mesh_lies_where_the_voxels_lie(scan, true, codes):
    "Bounds in the patient do not depend on how the array is stored, oblique affines included."
    turn = np.eye(4)
    c, s = np.cos(0.4), np.sin(0.4)
    turn[:3, :3] = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
    bone = Volume(true, turn @ scan.image.affine)
    one, other = bone_mesh(bone), bone_mesh(reorient(bone, codes))
    assert np.allclose(one.vertices.min(0), other.vertices.min(0), atol=0.05) and np.allclose(
        one.vertices.max(0), other.vertices.max(0), atol=0.05
    )
    assert (
        other.closed
        and other.volume_ml == pytest.approx(one.volume_ml, rel=1e-3)
        and other.volume_ml > 0
    )
    places = np.argwhere(true) @ bone.affine[:3, :3].T + bone.affine[:3, 3]
    corners = other.corners - places.mean(0)
    tetrahedra = np.linalg.det(corners)[:, None] / 6
    assert np.allclose(
        (tetrahedra * corners.sum(1) / 4).sum(0) / tetrahedra.sum(), 0, atol=0.5
    ), "the middle of what it encloses"


def read_stl(path):
    data = path.read_bytes()
    n = struct.unpack("<I", data[80:84])[0]
    assert len(data) == 84 + 50 * n and not data.startswith(b"solid") and b"SPACE=RAS" in data[:80]
    return np.array(
        [struct.unpack("<9f", data[84 + 50 * k + 12 : 84 + 50 * k + 48]) for k in range(n)]
    ).reshape(-1, 3, 3)


def read_ply(path):
    head, data = path.read_bytes().split(b"end_header\n", 1)
    n, m = (
        int(line.split()[-1]) for line in head.decode().splitlines() if line.startswith("element")
    )
    faces = np.array(
        [struct.unpack("<B3i", data[12 * n + 13 * k : 12 * n + 13 * k + 13]) for k in range(m)]
    )
    assert len(data) == 12 * n + 13 * m and (faces[:, 0] == 3).all()
    return np.frombuffer(data[: 12 * n], "<f4").reshape(-1, 3)[faces[:, 1:]]


def read_glb(path):
    data = path.read_bytes()
    size = struct.unpack("<I", data[12:16])[0]
    told, block = json.loads(data[20 : 20 + size]), data[28 + size :]
    assert (
        struct.unpack("<4sII", data[:12]) == (b"glTF", 2, len(data))
        and len(block) == told["buffers"][0]["byteLength"]
        and size % 4 == 0
    )

    def part(k):
        v = told["bufferViews"][told["accessors"][k]["bufferView"]]
        return block[v["byteOffset"] : v["byteOffset"] + v["byteLength"]]

    one = told["meshes"][0]["primitives"][0]
    places = np.frombuffer(part(one["attributes"]["POSITION"]), "<f4").reshape(-1, 3)
    assert np.allclose(places.min(0), told["accessors"][1]["min"]) and np.allclose(
        places.max(0), told["accessors"][1]["max"]
    )
    matrix = np.reshape(told["nodes"][0]["matrix"], (4, 4)).T  # glTF stores columns
    assert np.linalg.det(matrix[:3, :3]) > 0, "a mirrored patient"
    seen = (places @ matrix[:3, :3].T) * 1000  # mm; -x, z, y of the patient
    return np.stack([-seen[:, 0], seen[:, 2], seen[:, 1]], -1)[
        np.frombuffer(part(one["indices"]), "<u4").reshape(-1, 3)
    ]


@pytest.mark.parametrize(
    "ending, read", [(".stl", read_stl), (".ply", read_ply), (".glb", read_glb)]
)
def test_files_hold_the_mesh(tmp_path, ending, read):
    inside, affine = ball((2, 2, 4), 12.0, (100.0, -30.0, 7.0))
    mesh = bone_mesh(inside > 0, affine)
    corners = read(write_mesh(tmp_path / f"a{ending}", mesh))
    assert np.allclose(corners, mesh.corners, atol=1e-3) and [
        p.name for p in tmp_path.iterdir()
    ] == [f"a{ending}"]


def test_the_command(tmp_path, scan):
    write_volume(tmp_path / "ct.nii.gz", scan.image)
    done = medseg(
        "bone", "ct.nii.gz", "-o", "bone.nii.gz", "--mesh", "bone.glb", "--json", cwd=tmp_path
    )
    told = json.loads(done.stdout)
    assert (
        done.returncode == 0
        and {"threshold_hu", "method", "volume_ml", "warnings"} <= set(told)
        and told["closed"]
    )
    mask = read_volume(tmp_path / "bone.nii.gz", role="labels")
    assert np.allclose(mask.affine, scan.image.affine, atol=1e-3) and np.array_equal(
        mask.voxels, bone_mask(read_volume(tmp_path / "ct.nii.gz"))[0].voxels
    )
    assert told["mesh_ml"] == pytest.approx(told["volume_ml"], rel=0.01)
    bad = medseg("bone", "ct.nii.gz", "-o", "b.nii.gz", "--mesh", "bone.obj", cwd=tmp_path)
    assert (
        bad.returncode == 1
        and bad.stderr.startswith("error: ")
        and not (tmp_path / "b.nii.gz").exists()
    )
