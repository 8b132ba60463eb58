"""Counting volumes that differ, copies, and people in a folder.

Known answers, degenerate cases, and every number alive.
"""

from functools import lru_cache

import numpy as np
import pytest
from medseg.data.scans import scale_ct, scale_mr
from medseg.collapse.coverage import (
    NEAR,
    denoised_distances,
    audit_folder,
    k_nearest_balls,
    density_coverage,
    effective_subjects,
    few_modes,
    memorised,
)
from medseg.collapse.diversity import diversity, effective_volumes, features, kernel, pairwise_ssim
from medseg.translate.scores import ssim
from medseg.io.files import InputError
from medseg.phantoms.spine_scanner import spine_ct, spine_mr
from medseg.io.volume import Volume
from medseg.io.write import write_volume
from scipy.ndimage import gaussian_filter, rotate, zoom

N, MM, ASKED = 15, (4.0, 4.0, 4.0), dict(spacing=(2.0, 2.0, 2.0), extent_mm=(128.0, 128.0, 72.0))


def halved(v):
    "From 2 mm to 4: quicker than to paint voxels of 4 mm."
    affine = v.affine @ np.diag([2, 2, 2, 1.0])
    affine[:3, 3] += v.affine[:3, :3].sum(1) / 2
    return Volume(
        v.voxels.reshape(32, 2, 32, 2, 18, 2)
        .mean((1, 3, 5), dtype=np.float32)
        .round()
        .astype(np.int16),
        affine,
    )


@lru_cache(None)
def scans():
    return [halved(spine_ct(1000 + s, **ASKED).image) for s in range(N)]


@lru_cache(None)
def cts():
    return np.stack([scale_ct(v.voxels) for v in scans()])


@lru_cache(None)
def mrs():
    return np.stack([scale_mr(halved(spine_mr(1000 + s, **ASKED).image).voxels) for s in range(N)])


def count(stack):
    return effective_volumes(kernel(features(stack)))


def noise(sd, n=N, seed=0):
    return sd * np.random.default_rng(seed).standard_normal((n, *cts().shape[1:])).astype(
        np.float32
    )


def test_vendi_of_known_tables():
    assert effective_volumes(np.ones((15, 15))) == 1 and effective_volumes(np.ones((1, 1))) == 1
    for n in (2, 15, 40):
        assert effective_volumes(np.eye(n)) == pytest.approx(n)
    assert effective_volumes(np.kron(np.eye(3), np.ones((5, 5)))) == pytest.approx(3)
    half = np.array([[1, 0.5], [0.5, 1]])
    assert effective_volumes(half) == pytest.approx(
        np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    )


@pytest.mark.parametrize(
    "one", [np.zeros((8, 8, 8)), np.ones((8, 8, 8)), np.full((5, 6, 7), -1.0), None]
)
def test_equal_volumes_count_exactly_one(one):
    one = cts()[3] if one is None else one
    assert count(np.repeat(one[None], N, 0)) == 1.0 and count(one[None]) == 1.0


@pytest.mark.parametrize("sd", [0.005, 0.02, 0.05, 0.1])
def test_noise_on_copies_is_no_variety(sd):
    assert 1 <= count(cts()[:1] + noise(sd)) < 1.5


def test_people_are_different_in_both_modalities():
    assert count(cts()) > 10 and count(mrs()) > 13
    assert abs(count(cts()) - count(np.clip(cts() + noise(0.05), -1, 1))) < 0.5


def test_repeats_and_brightness_add_nothing():
    five = cts()[:5]
    gain = np.linspace(0.5, 1.5, N)[:, None, None, None].astype(np.float32)
    assert count(np.repeat(five, 3, 0)) == pytest.approx(count(five), rel=1e-6)
    assert count(cts()[:1] * gain - 0.2) < 1.001


def test_falls_at_every_step_to_collapse_but_not_before_it():
    mean, small = cts().mean(0), noise(0.05)
    ways = [(1 - a) * cts() + a * mean + small for a in (0, 0.25, 0.5, 0.75, 0.9, 1)]
    ratio, effective = zip(
        *[
            (d["diversity_ratio"], d["effective_outputs"])
            for d in (diversity(mrs(), w) for w in ways)
        ]
    )
    assert (
        all(np.diff(effective) < 0)
        and all(np.diff(ratio) < 0)
        and ratio[0] > 0.7
        and ratio[-1] < 0.05
    )
    assert effective[2] > 3


def test_soft_clouds_over_one_person_count_less_than_people():
    clouds = np.stack([gaussian_filter(v, 2) for v in noise(1.0)])
    clouds /= clouds.std()
    few = [count(cts()[:1] + hu / 1500 * clouds) for hu in (5, 15, 30, 100)]
    assert all(np.diff(few) > 0) and few[0] < 1.2 and few[1] < 2 and few[2] < 0.6 * count(cts())


def test_towards_one_output_too():
    effective = [count((1 - a) * cts() + a * cts()[:1]) for a in (0, 0.25, 0.5, 0.75, 0.9, 1)]
    assert all(np.diff(effective) < 0) and effective[-1] == 1


def test_the_report_is_alive():
    a, b = diversity(mrs(), cts(), real=cts()[::-1]), diversity(
        cts()[:6], cts()[np.arange(6) % 2], real=cts()[:4]
    )
    assert (
        all(a[k] != b[k] for k in a)
        and set(a) == set(b)
        and len(a) == 11
        and all(type(v) is float for v in a.values())
    )
    assert a["real_ratio"] == pytest.approx(1) and b["effective_outputs"] == pytest.approx(
        2, abs=0.2
    )


def test_one_subject_of_inputs_gives_no_ratio():
    found = diversity(np.repeat(mrs()[:1], 5, 0), cts()[:5])
    assert found["effective_inputs"] == 1 and found["diversity_ratio"] is None
    alone = diversity(mrs()[:1], cts()[:1])
    assert (
        alone["effective_outputs"] == 1
        and alone["diversity_ratio"] is None
        and alone["ssim_outputs"] is None
        and alone["distance_outputs"] is None
    )


def test_ssim_agrees_with_the_masked_one_inside():
    a, b = cts()[0], cts()[1]
    inner = np.zeros(a.shape, bool)
    inner[6:-6, 6:-6, 6:-6] = True
    small = pairwise_ssim(np.stack([a, b]))
    assert small[0, 0] == 1 and small[0, 1] == small[1, 0]
    assert small[0, 1] == pytest.approx(ssim(a, b, np.ones(a.shape, bool), (-1.0, 1.0)), abs=0.02)


def test_rows_keep_apart_what_differs():
    assert (denoised_distances(cts()) + np.eye(N) > NEAR).all() and denoised_distances(
        cts()[:2] + noise(0.02, 2), cts()[:2]
    ).diagonal().max() < 0.1
    assert not denoised_distances(np.zeros((3, 8, 8, 8))).any()


def test_modes_are_named():
    order = np.array([4, 4, 7, 4, 9, 7, 4, 4, 4, 9, 9, 4, 4, 7, 4])
    found = few_modes(cts()[order] + noise(0.03))
    assert found == dict(modes=3, labels=[[4, 7, 9].index(k) for k in order], sizes=[9, 3, 3])
    assert few_modes(cts())["modes"] == N and few_modes(np.zeros((4, 8, 8, 8)))["modes"] == 1


def test_density_and_coverage_of_known_points():
    rng = np.random.default_rng(0)

    def far(a, b):
        return np.sqrt(((a[:, None] - b) ** 2).sum(-1))

    found = [
        k_nearest_balls(far(real, real), far(fake, real), 4)
        for real, fake in ((rng.normal(size=(40, 5)), rng.normal(size=(60, 5))) for _ in range(150))
    ]
    assert np.mean([f["density"] for f in found]) == pytest.approx(1, abs=0.04)
    assert np.mean([f["coverage"] for f in found]) == pytest.approx(found[0]["expected"], abs=0.01)
    real = rng.normal(size=(40, 5))
    lost = [
        k_nearest_balls(far(real, real), far((1 - a) * real + a * real.mean(0), real))["coverage"]
        for a in (0, 0.5, 0.9, 1)
    ]
    assert lost == sorted(lost, reverse=True) and lost[0] == 1 and lost[-1] < 0.9


def test_degenerate_balls_have_values():
    for n, m, k in ((15, 15, 5), (3, 9, 5), (2, 1, 5)):
        found = k_nearest_balls(np.zeros((n, n)), np.zeros((m, n)), k)
        assert (
            found["coverage"] == 1
            and found["density"] == pytest.approx(n / (n - 1))
            and found["k"] == min(k, n - 1)
        )
    assert k_nearest_balls(np.zeros((1, 1)), np.zeros((3, 1)))["density"] is None
    same = np.repeat(cts()[:1], 5, 0)
    assert (
        density_coverage(same, same)["coverage"] == 1
        and density_coverage(cts(), same)["coverage"] < 0.8
    )
    assert density_coverage(cts(), cts())["coverage"] == 1


def test_memory_is_found_and_the_patient_herself_is_excused():
    mr, own, train = mrs()[:7], cts()[:7], cts()[7:]
    assert memorised(own, train)["share"] == 0 and memorised(own, train)["seen"] == 0
    copy = memorised(np.repeat(train[3:4], 7, 0) + noise(0.05, 7), train, mr, MM)
    assert (
        copy["nearest"] == [3] * 7
        and copy["share"] > 0.7
        and copy["seen"] == 1
        and all(copy["near"])
    )
    soft = memorised(0.8 * train[:7] + 0.2 * cts().mean(0), train)
    assert soft["share"] > 0.8 and soft["nearest"] == list(range(7))
    assert memorised(own, cts())["share"] == 1 and memorised(own, cts(), mr, MM)["share"] == 0
    mixed = memorised(np.concatenate([own[:5], train[:2]]), train)
    assert mixed["near"] == [False] * 5 + [True] * 2 and mixed["share"] == pytest.approx(2 / 7)


def changed(v, k):
    "Copy `k` of a scan, as augmentation makes them."
    rng = np.random.default_rng(k)
    if k == 0:
        return v
    a = v.voxels.astype(np.float32)
    if k % 4 == 1:
        a = a[::-1]
    if k % 4 == 2:
        a = rotate(a, rng.uniform(-9, 9), (0, 1), reshape=False, order=1, mode="nearest")
    if k % 4 == 3:
        a = a[2:, :, 2:]
    if k % 4 == 0:
        a = zoom(a, 1.15, order=1)
        return Volume(a, v.affine @ np.diag([1 / 1.15] * 3 + [1.0]))
    return Volume(a + 15 * rng.standard_normal(a.shape), v.affine)


def test_fifteen_files_one_subject(tmp_path):
    one = spine_ct(1000, spacing=(3.0, 3.0, 3.0), extent_mm=(128.0, 128.0, 120.0)).image
    (tmp_path / "deep").mkdir()
    for k in range(N):
        write_volume(tmp_path / ("deep" if k else "") / f"file_{k:02d}.nii.gz", changed(one, k))
    found = audit_folder(tmp_path)
    assert (
        found["files"] == N
        and found["subjects"] == 1
        and found["effective"] == pytest.approx(1)
        and len(found["groups"][0]) == N
    )


def test_fifteen_files_fifteen_subjects(tmp_path):
    for k, v in enumerate(scans()):
        write_volume(tmp_path / f"file_{k:02d}.nii.gz", v)
    (tmp_path / "broken.nii").write_bytes(b"nothing")
    found = audit_folder(tmp_path)
    assert (
        found["subjects"] == N
        and found["groups"] == []
        and found["effective"] == pytest.approx(N)
        and found["left_out"][0]["path"] == "broken.nii"
    )
    with pytest.raises(InputError, match="a folder of scans"):
        audit_folder(tmp_path / "none")


def test_subjects_of_a_stack():
    stack = np.stack([cts()[0], cts()[0][::-1], cts()[0] + noise(0.03, 1)[0], cts()[1], cts()[2]])
    found = effective_subjects(stack, MM)
    assert (
        found["subjects"] == 3 and found["groups"] == [[0, 1, 2]] and 2.5 < found["effective"] < 3
    )


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="1 on its diagonal"):
        effective_volumes(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="finite"):
        effective_volumes(np.array([[1, np.nan], [np.nan, 1]]))
    with pytest.raises(ValueError, match="one shape"):
        features([np.zeros((8, 8, 8)), np.zeros((8, 8, 9))])
