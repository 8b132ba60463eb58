"""Whole scans through a generator: any grid, bounded memory, no seam.

And scores that nothing outside the patient can move.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch
from medseg.data.patch import blended, cut_patch, seam_score, starts
from medseg.data.scans import make_scan, scale_mr, unscale_ct
from medseg.translate.baselines import (
    best_bone_dice,
    best_intensity_map,
    identity_ct,
    intensity_map,
)
from medseg.translate.predict import (
    TranslateRecipe,
    load_translator,
    save_translator,
    translate_scan,
)
from medseg.translate.scores import body_mask, ms_ssim, otsu, otsu_bone, psnr, score_ct, ssim
from medseg.phantoms.spine_scanner import spine_ct, spine_mr
from medseg.phantoms.vertebra import BONE
from medseg.io.volume import ORIENTATIONS, Volume, reorient
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = dict(spacing=(4.0, 4.0, 4.0), extent_mm=(96.0, 96.0, 120.0))


class Same(nn.Module):
    def forward(self, x):
        return x


@pytest.fixture(scope="module")
def pair():
    return spine_mr(3, **SIZE).image, spine_ct(3, **SIZE)


def test_identity_network_gives_the_scan_back_whatever_the_patch():
    rng = np.random.default_rng(0)
    for _ in range(30):
        shape, size = tuple(int(n) for n in rng.integers(1, 30, 3)), tuple(
            int(n) for n in rng.integers(1, 40, 3)
        )
        scan = rng.uniform(-1, 1, shape).astype(np.float32)
        stride = tuple(int(rng.integers((k + 2) // 3, k + 1)) for k in size)
        back = blended(
            ((s, cut_patch(scan, s, size)) for s in starts(shape, size, stride)), shape, size
        )
        assert abs(back - scan).max() < 1e-6


def comes_home(mr, whole):
    """Whatever way the MR is stored, the CT lies on its very grid and shows the same in the same
    places.
    """
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    for v in [reorient(mr, c) for c in ORIENTATIONS[::7]] + [Volume(mr.voxels, turn @ mr.affine)]:
        made, _ = translate_scan(Same(), TranslateRecipe(), v, (16, 16, 16), 0.5)
        assert made.shape == v.shape and np.array_equal(made.affine, v.affine)
        assert abs(reorient(made, mr.axcodes).voxels.astype(int) - whole).max() <= 1


def test_a_scan_comes_home(pair, monkeypatch):
    """Orientation, oblique affine, thick slices.

    Two sides are of one length: voxels whose axes are exchanged would fit, and are found.
    """
    mr, _ = pair
    whole = np.rint(unscale_ct(scale_mr(mr.voxels))).astype(np.int16)
    comes_home(mr, whole)
    for wrong in (lambda v: v.swapaxes(0, 1), lambda v: v[::-1], lambda v: v[:, :, ::-1]):
        with monkeypatch.context() as patched:
            patched.setattr(
                "medseg.translate.predict._home",
                lambda made, scan, wrong=wrong: Volume(
                    reorient(Volume(wrong(made.voxels), made.affine), scan.axcodes).voxels,
                    scan.affine,
                ),
            )
            with pytest.raises(AssertionError):
                comes_home(mr, whole)
    coarse, _ = translate_scan(Same(), TranslateRecipe(spacing_mm=6.0), mr, (16, 16, 16))
    assert coarse.shape == mr.shape and np.array_equal(coarse.affine, mr.affine)
    assert np.corrcoef(coarse.voxels.ravel(), whole.ravel())[0, 1] > 0.8


@pytest.mark.parametrize("dims", (2, 2.5, 3))
def test_every_kind_of_generator_translates(tmp_path, pair, dims):
    torch.manual_seed(0)
    recipe = TranslateRecipe(
        "resnet1", width=2, dims=dims, spectral=True, patch=(16, 16, 16), residual=True
    )
    net = recipe.net().eval()
    save_translator(tmp_path / "net.safetensors", net, recipe, dict(step=3))
    again, same = load_translator(tmp_path / "net.safetensors")
    assert same == recipe
    a, b = (translate_scan(n, same, pair[0])[0].voxels for n in (net, again))
    assert np.array_equal(a, b) and a.min() >= -1000 and a.max() <= 2000


def test_seams_of_blocks_side_by_side_are_found_and_blended_away():
    """Instance normalisation sees only its block.

    Compared with the same places of a scan that went through one window.
    """

    class Normalised(nn.Module):
        def forward(self, x):
            return torch.tanh(
                0.5 * (x - x.mean((2, 3, 4), keepdim=True)) / x.std((2, 3, 4), keepdim=True)
            )

    mr, size = spine_mr(1).image, (24, 24, 24)
    whole, alone = translate_scan(Normalised(), TranslateRecipe(), mr, mr.shape, 0)
    assert alone == 1, "one window has no faces"
    bad = translate_scan(Normalised(), TranslateRecipe(), mr, size, 0)[1]
    good = translate_scan(Normalised(), TranslateRecipe(), mr, size, 0.5)[1]
    same_places = [
        seam_score(whole.voxels, size, tuple(round(k * (1 - o)) for k in size)) for o in (0, 0.5)
    ]
    assert bad > same_places[0] + 0.25
    assert abs(good - same_places[1]) < 0.1


BIG = """
import resource, sys
import numpy as np, torch
from torch import nn
torch.set_num_threads(1)
from medseg.translate.predict import TranslateRecipe, translate_scan
from medseg.io.volume import Volume
voxels = np.random.default_rng(0).integers(0, 800, (512, 512, 200), np.int16)
net = nn.Sequential(nn.Conv3d(1, 1, 1), nn.Tanh())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
recipe, scan = TranslateRecipe(patch=(96, 96, 96)), Volume(voxels, np.diag([.7, .7, 1, 1]))
made, seam = translate_scan(net, recipe, scan, overlap=0.1)
assert made.shape == voxels.shape
print(before/2**20, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20)
"""


def test_a_large_scan_stays_small_in_memory():
    """512 x 512 x 200 through patches of 96.

    The pipeline itself needs a layer of patches, not a scan of floats.
    """
    done = subprocess.run([sys.executable, "-c", BIG], capture_output=True, text=True, check=True)
    before, peak = map(float, done.stdout.split())
    assert peak - before < 1.0, f"{before:.2f} GB before, {peak:.2f} GB at most"
    assert peak < 2.0


def test_scores_ignore_what_lies_outside(pair):
    real = pair[1].image
    mask = body_mask(real.voxels)
    mask[:, :3] = mask[:, :, -4:] = False
    rng = np.random.default_rng(0)
    fake = real.voxels + rng.normal(0, 80, real.shape)
    loud = np.where(mask, fake, rng.normal(300, 900, real.shape))
    quiet = Volume(np.where(mask, real.voxels, -1000), real.affine)
    a, b = score_ct(Volume(fake, real.affine), real, mask), score_ct(
        Volume(loud, real.affine), quiet, mask
    )
    assert a == b


def test_psnr_and_ssim_follow_the_published_formulas():
    """Against scikit-image where it defines the same thing.

    A fixed range, Gaussian windows of 1.5, away from the rim.
    """
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    real = rng.normal(300, 300, (40, 36, 30)).clip(-1000, 2000)
    fake = (real + rng.normal(0, 120, real.shape)).clip(-1000, 2000)
    full = np.ones(real.shape, bool)
    assert np.isclose(
        psnr(fake, real, full), metrics.peak_signal_noise_ratio(real, fake, data_range=3000)
    )
    inner = tuple(slice(6, n - 6) for n in real.shape)
    _, theirs = metrics.structural_similarity(
        real + 1000,
        fake + 1000,
        data_range=3000,
        gaussian_weights=True,
        use_sample_covariance=False,
        full=True,
    )
    from medseg.translate.scores import _ready, _similar

    luminance, structure = _similar(*_ready(fake, real, full, (-1000, 2000)))
    assert np.allclose((luminance * structure).reshape(real.shape)[inner], theirs[inner], atol=1e-9)
    assert 0 < ms_ssim(fake, real, full) < 1 and 0 < ssim(fake, real, full) < 1


def test_otsu_agrees_with_scikit_image():
    filters = pytest.importorskip("skimage.filters")
    rng = np.random.default_rng(0)
    for _ in range(10):
        values = (
            np.concatenate(
                [
                    rng.normal(40, rng.uniform(20, 120), 3000),
                    rng.normal(
                        rng.uniform(200, 900), rng.uniform(30, 200), rng.integers(300, 3000)
                    ),
                ]
            )
            .round()
            .astype(np.int16)
        )
        assert np.array_equal(values > otsu(values), values > filters.threshold_otsu(values))


def test_no_table_from_grey_value_beats_the_best_one(pair):
    mr, scan = pair
    ct, bone = scan.image, np.isin(scan.labels.voxels, BONE)
    mask = body_mask(ct.voxels)
    best, mean = best_intensity_map(mr, ct, mask), best_intensity_map(mr, ct, mask, of="mean")
    other = intensity_map(
        [make_scan("a", spine_mr(0, **SIZE).image, "MR")],
        [make_scan("b", spine_ct(501, **SIZE).image, "CT")],
    )
    made = {
        "identity": identity_ct(mr),
        "histograms": other.apply(mr),
        "best": best.apply(mr),
        "mean": mean.apply(mr),
    }
    rows = {name: score_ct(v, ct, mask, bone) for name, v in made.items()}
    assert rows["best"]["mae_hu"] <= min(r["mae_hu"] for r in rows.values())
    assert rows["mean"]["psnr_db"] >= max(r["psnr_db"] for r in rows.values()) - 0.05
    for against, key in ((bone, "true_bone_dice"), (otsu_bone(ct.voxels, mask), "bone_dice")):
        assert max(r[key] for r in rows.values()) <= best_bone_dice(mr, ct, against, mask) + 1e-9
    assert (
        score_ct(ct, ct, mask, bone)["bone_dice"]
        == 1
        > best_bone_dice(mr, ct, otsu_bone(ct.voxels, mask), mask)
    ), "an MR alone cannot tell bone from air"
