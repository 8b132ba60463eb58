"Pairing made CT with its MR by edges: known answers, ties, chance, and every number alive."

from functools import lru_cache

import numpy as np
import pytest
from medseg.data.scans import scale_ct, scale_mr
from medseg.collapse.similarity import (
    centred,
    edge_descriptors,
    edges,
    pairing,
    similarity_matrix,
    trusted_from,
)
from medseg.phantoms.spine_scanner import spine_ct, spine_mr

MM, N = (4.0, 4.0, 4.0), 15


@lru_cache(None)
def people():
    asked = dict(spacing=(2.0, 2.0, 2.0), extent_mm=(128.0, 128.0, 72.0))

    # from 2 mm to 4: quicker than to paint voxels of 4 mm
    def halved(v):
        return v.reshape(32, 2, 32, 2, 18, 2).mean((1, 3, 5), dtype=np.float32)

    return np.stack(
        [scale_mr(halved(spine_mr(1000 + s, **asked).image.voxels)) for s in range(N)]
    ), np.stack([scale_ct(halved(spine_ct(1000 + s, **asked).image.voxels)) for s in range(N)])


@lru_cache(None)
def true():
    return similarity_matrix(*people(), MM)


def pair(outputs):
    return pairing(similarity_matrix(people()[0], outputs, MM))


def test_each_ct_finds_its_own_mr():
    found = pairing(true())
    assert (
        found["accuracy"] == 1
        and found["matches"] == list(range(N))
        and found["p"] == 0.001
        and found["rank_mean"] == 1
        and found["chance"] == 1 / N
    )


def test_identity_like_generator():
    mr = people()[0]
    for outputs in (mr, -mr, np.tanh(2 * mr)):
        assert pair(outputs)["accuracy"] == 1


@pytest.mark.parametrize("which", [0, 3, 14])
def test_constant_generator_is_exactly_chance(which):
    found = pair(np.repeat(people()[1][which : which + 1], N, 0))
    assert (
        found["accuracy"] == pytest.approx(1 / N, abs=1e-12)
        and found["p"] == 1
        and found["rank_mean"] == (N + 1) / 2
        and set(found["matches"]) == {-1}
    )


def test_constant_outputs_without_an_edge():
    assert pair(np.zeros_like(people()[1]))["accuracy"] == pytest.approx(1 / N, abs=1e-12)


@pytest.mark.parametrize("modes", [2, 3, 5])
def test_few_modes_pair_as_many_as_there_are_modes(modes):
    found = pair(people()[1][np.arange(N) % modes])
    assert found["accuracy"] == pytest.approx(modes / N, abs=0.07)


def test_memorised_is_near_chance():
    found = pair(np.roll(people()[1], 1, 0))
    assert found["accuracy"] == 0 and found["p"] > 0.2


def test_one_output_with_strong_edges_does_not_draw_all_matches():
    ct = people()[1].copy()
    ct[4] = np.clip(3 * ct[4], -1, 1)
    assert pair(ct)["accuracy"] >= 14 / 15


def test_falls_on_the_way_to_collapse_and_reaches_chance():
    mr, ct = people()
    noise = 0.1 * np.random.default_rng(0).standard_normal(ct.shape)
    found = [pair((1 - a) * ct + a * ct.mean(0) + noise) for a in (0, 0.25, 0.5, 0.75, 0.9, 1)]
    accuracy = [f["accuracy"] for f in found]
    assert all(np.diff(accuracy) <= 0) and accuracy[0] == 1 and accuracy[-1] <= 4 / 15
    assert (
        all(np.diff([f["rank_mean"] for f in found]) >= 0)
        and found[0]["p"] < 0.01 < 0.05 < found[-1]["p"]
    )


def test_p_is_uniform_when_outputs_ignore_inputs():
    rng = np.random.default_rng(1)
    p = np.array(
        [pairing(rng.normal(size=(8, 8)), seed=s, permutations=199)["p"] for s in range(200)]
    )
    assert abs(p.mean() - 0.5) < 0.07 and 0.01 < (p <= 0.05).mean() < 0.1


def test_exact_for_few_and_says_how_many_it_needs():
    assert trusted_from() == 4
    for n, p in ((2, 1 / 2), (3, 1 / 6), (4, 1 / 24)):
        assert pairing(np.eye(n))["p"] == pytest.approx(p)
    assert pairing([[1.0]]) | {} == dict(
        accuracy=1.0, chance=1.0, p=1.0, rank_mean=1.0, matches=[0], trusted_from=4
    )


def test_same_seed_same_numbers():
    m = np.random.default_rng(0).normal(size=(9, 9))
    assert pairing(m, seed=5) == pairing(m, seed=5)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 3.0), (0.7, 0.7, 5.0)])
def test_edges_are_in_millimetres(spacing):
    x, y, z = (np.arange(n) * s for n, s in zip((40, 40, 24), spacing))
    oblique = np.add.outer(np.add.outer(x, 2 * y), 3 * z)
    xx, yy, zz, *_ = edges(oblique, spacing)[:, 20, 20, 12]
    assert yy / xx == pytest.approx(4, rel=0.01) and zz / xx == pytest.approx(9, rel=0.01)


def test_description_ignores_sign_and_scale_but_not_anatomy():
    ct = people()[1][:3]
    a, b = edge_descriptors(ct, MM), edge_descriptors(5 - 40 * ct, MM)
    assert np.abs(a - b).max() < 1e-3 and np.abs(a[0] - a[1]).max() > 0.5


def test_centring_leaves_rounding_out():
    assert not centred(
        np.outer(np.ones(5), np.arange(5.0)) + 1e-12 * np.random.default_rng(0).normal(size=(5, 5))
    ).any()


def test_bad_stacks_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        similarity_matrix([np.zeros((8, 8, 8)), np.zeros((9, 8, 8))], np.zeros((2, 8, 8, 8)))
    with pytest.raises(ValueError, match="one grid"):
        similarity_matrix(np.zeros((2, 8, 8, 8)), np.zeros((2, 8, 8, 9)))
    with pytest.raises(ValueError, match="an output for each input"):
        pairing(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="finite"):
        edge_descriptors(np.full((2, 8, 8, 8), np.inf))
