"""Losses of the translation: each trains, volume by volume, in bounded memory.

And the audit stops those that do not.
"""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from medseg.train.memory import LiveBytes
from medseg.translate.adversarial import ADVERSARIAL_KINDS, adversarial_loss, l1
from medseg.translate.gradient_audit import InertLoss, audit, check_audit
from medseg.translate.mutual_information import body_mask, mutual_information, shape_loss
from medseg.translate.contrastive import PatchContrast, patch_nce
from medseg.translate.discriminators import discriminator
from medseg.translate.generators import generator
from medseg.translate.gradient_consistency import gradient_consistency, sobel
from medseg.translate.perceptual import Perceptual, thick_axes

pytestmark = pytest.mark.usefixtures("one_thread")


def randoms(*shape, seed=0):
    "In -1..1, double precision."
    return (
        0.4
        * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).clamp(-0.95, 0.95)


tiny_look = Perceptual(
    "random", width=2, layers=("relu1_1", "relu2_1"), thin=4, chunk=0.004
).double()
torch.manual_seed(0)
tiny_contrast = PatchContrast([1], width=4, patches=9).double()
LOSSES = {
    "l1": l1,
    "gradient": gradient_consistency,
    "gradient thick": lambda a, b: gradient_consistency(a, b, (1.0, 2.0, 3.0), block_mm=4.0),
    "gradient signed": lambda a, b: gradient_consistency(a, b, (1.0, 2.0, 3.0), signed=True),
    "perceptual": tiny_look,
    "information": lambda a, b: mutual_information(a, b, bins=7),
    "shape": lambda a, b: shape_loss(a, (b + 1) / 2, softness=0.3),
    "contrast": lambda a, b: tiny_contrast([b], [a], step=1),
    **{
        f"{kind} {side}": lambda a, b, kind=kind, side=side: getattr(adversarial_loss(kind), side)(
            [a, b]
        )
        for kind in ADVERSARIAL_KINDS
        for side in ("real", "fake", "generator_loss")
    },
}


@pytest.mark.parametrize("name", LOSSES)
def test_slopes_agree_with_differences(name):
    shape = (1, 1, 4, 4, 4) if name == "perceptual" else (2, 1, 4, 4, 5)  # its chunks make it slow
    a, b = randoms(*shape).requires_grad_(), randoms(*shape, seed=1).requires_grad_(
        name != "contrast"
    )
    assert torch.autograd.gradcheck(LOSSES[name], (a, b))


@pytest.mark.parametrize("name", LOSSES)
def test_values_follow_the_order_of_the_batch(name):
    a, b = randoms(4, 1, 6, 5, 7), randoms(4, 1, 6, 5, 7, seed=1)
    order, loss = torch.tensor([2, 0, 3, 1]), LOSSES[name]
    values = loss(a, b)
    assert values.shape == (4,) and values.unique().numel() == 4
    torch.testing.assert_close(loss(a[order], b[order]), values[order], rtol=0, atol=1e-12)
    torch.testing.assert_close(
        torch.cat([loss(a[i : i + 1], b[i : i + 1]) for i in range(4)]), values, rtol=0, atol=1e-12
    )


def test_an_audit_by_order_catches_a_loss_of_the_first_volume_alone():
    a, b = randoms(4, 1, 6, 5, 7), randoms(4, 1, 6, 5, 7, seed=1)

    def first_only(a, b):
        return gradient_consistency(a[:1], b[:1]).expand(len(a))

    assert not torch.allclose(first_only(a.flip(0), b.flip(0)), first_only(a, b).flip(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype):
    a, b = randoms(1, 1, 24, 24, 24).to(dtype), randoms(1, 1, 24, 24, 24, seed=1).to(dtype)
    for loss in (
        l1,
        gradient_consistency,
        mutual_information,
        lambda a, b: shape_loss(a, b > 0),
        Perceptual("random", width=4),
        lambda a, b: adversarial_loss("hinge").real([a]),
    ):
        half, single = loss(a, b), loss(a.float(), b.float())
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, single, rtol=1e-3, atol=1e-4)


# gradient consistency


@pytest.mark.parametrize("shape", [(32, 32, 32), (48, 40, 12), (40, 33, 20)])
def test_gradient_consistency_has_its_stated_range(shape):
    a, b = randoms(1, 1, *shape), randoms(1, 1, *shape, seed=1)
    for signed, inverted in ((True, 2), (False, 0)):
        same, unrelated, turned = (
            gradient_consistency(a, x, signed=signed).item() for x in (a, b, -a)
        )
        assert abs(same) < 1e-6 and abs(turned - inverted) < 1e-6 and abs(unrelated - 1) < 0.05


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.0, 4.0)])
def test_sobel_keeps_its_axes(spacing):
    for along in range(3):
        ramp = (
            torch.arange(7.0)
            .reshape([-1 if i == along else 1 for i in range(3)])
            .expand(2, 1, 7, 7, 7)
        )
        inner = sobel(ramp, spacing)[:, :, 1:-1, 1:-1, 1:-1]
        for i in range(3):
            assert (inner[:, i] == (1 / spacing[i] if i == along else 0)).all()


def test_sobel_is_scipys_inside():
    x = randoms(1, 1, 8, 9, 10)
    for i in range(3):
        theirs = (
            ndimage.sobel(x[0, 0].numpy(), i) / 32
        )  # 2 for the difference, 4 for each smoothing
        np.testing.assert_allclose(
            sobel(x)[0, i, 1:-1, 1:-1, 1:-1].numpy(), theirs[1:-1, 1:-1, 1:-1], atol=1e-12
        )


# perceptual


def all_at_once(look, a, b):
    "The naive form: one graph for all slices of all axes."
    return torch.stack(
        [
            torch.stack(
                [
                    look.look(*(x[v].movedim(axis + 1, 0) for x in (a, b))).mean()
                    for axis in thick_axes(a.shape[2:], look.axes, look.thin)
                ]
            ).mean()
            for v in range(len(a))
        ]
    )


def slopes(loss, a, b, both=True):
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_(both)
    value = loss(a, b)
    return value, *torch.autograd.grad(
        (value * torch.arange(1, len(a) + 1)).sum(), (a, b) if both else (a,)
    )


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("shape", [(17, 20, 18), (33, 24, 12)])
def test_perceptual_slopes_equal_the_naive_ones(shape, both):
    look, a, b = (
        Perceptual("random", width=8, chunk=0.07),
        randoms(2, 1, *shape).float(),
        randoms(2, 1, *shape, seed=1).float(),
    )
    assert len(look.plan(a.shape)) > 6
    for ours, theirs in zip(
        slopes(look, a, b, both), slopes(lambda a, b: all_at_once(look, a, b), a, b, both)
    ):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def peak(loss, slices, across):
    """Most bytes alive in loss and backward pass, the volumes and their slope included.

    On meta, nothing is computed.
    """
    with LiveBytes() as count:
        a, b = (
            torch.empty(1, 1, across, across, slices, device="meta", requires_grad=r)
            for r in (True, False)
        )
        loss(a, b).sum().backward()
    return count.peak


@pytest.mark.parametrize("across", [64, 96])
def test_perceptual_memory_is_flat_from_48_to_192_slices(across):
    look = Perceptual("random").to("meta")
    ours = [peak(look, n, across) for n in (48, 60, 96, 192)]
    assert max(ours) <= 1.1 * min(ours), ours
    assert peak(lambda a, b: all_at_once(look, a, b), 48, across) > 2 * max(ours)


def test_beside_the_volumes_perceptual_memory_does_not_grow_at_all():
    "At the spine note's size, 256 x 128 in plane; two volumes and one slope are taken off."
    look = Perceptual("random").to("meta")
    own = []
    for slices in (48, 192):
        with LiveBytes() as count:
            a, b = (
                torch.empty(1, 1, 256, 128, slices, device="meta", requires_grad=r)
                for r in (True, False)
            )
            look(a, b).sum().backward()
        own.append(count.peak - 3 * a.nbytes)
    assert own[1] <= 1.01 * own[0]


def test_sampled_slices_are_unbiased():
    a, b = randoms(1, 1, 19, 23, 16), randoms(1, 1, 19, 23, 16, seed=1)
    # one half differs, the other does not: a wrong draw would show
    b[:, :, :, 10:] = a[:, :, :, 10:]
    whole = Perceptual("random", width=4).double()(a, b).item()
    sampled = Perceptual("random", width=4, share=0.2).double()
    draws = np.array([sampled(a, b, step).item() for step in range(300)])
    assert draws.std() > 0.01 * whole
    assert abs(draws.mean() - whole) < 3.5 * draws.std() / len(draws) ** 0.5
    assert sampled(a, b, 5) == sampled(a, b, 5)
    with pytest.raises(ValueError, match="step"):
        sampled(a, b)


def test_perceptual_skips_the_strips_of_twelve_slices():
    a, b = randoms(1, 1, 40, 36, 12).float(), randoms(1, 1, 40, 36, 12, seed=1).float()
    look = Perceptual("random", width=4)
    assert {axis for _, axis, _, _ in look.plan(a.shape)} == {2}
    value, slope, _ = slopes(look, a, b)
    assert value.isfinite().all() and (slope != 0).float().mean() > 0.9
    with pytest.raises(ValueError, match="thin"):
        look(a[..., :12, :12, :], b[..., :12, :12, :])


def test_perceptual_can_be_kept_for_two_backward_passes():
    a, b = (
        randoms(1, 1, 17, 18, 19).float().requires_grad_(),
        randoms(1, 1, 17, 18, 19, seed=1).float(),
    )
    value = Perceptual("random", width=4)(a, b).sum()
    once, twice = (torch.autograd.grad(value, a, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, twice)
    with torch.no_grad():
        assert torch.equal(Perceptual("random", width=4)(a, b).sum(), value)


# outline


def test_body_mask_closes_gaps_and_carries_no_gradient():
    x = torch.full((2, 1, 30, 30, 4), -1.0)
    x[:, :, 5:25, 5:25], x[1, :, 12:16, 12:16] = 0.5, -1.0
    mask = body_mask(x.requires_grad_())
    assert not mask.requires_grad and torch.equal(mask[0], mask[1]) and mask[0].sum() == 20 * 20 * 4


# the audit


class WithArrays:
    "The spine note's gradient consistency in kind: Sobel by scipy, detached."

    def __call__(self, fake, real):
        a, b = (x.detach().cpu().numpy()[:, 0] for x in (fake, real))
        corr = [
            np.corrcoef(ndimage.sobel(a, k).ravel(), ndimage.sobel(b, k).ravel())[0, 1]
            for k in (1, 2, 3)
        ]
        return torch.tensor(1 - float(np.mean(corr)))


class WithItself:
    """The spine note's perceptual loss in kind.

    Early features detached, deep ones compared with themselves.
    """

    def __init__(self):
        self.look = Perceptual("random", width=4, layers=("relu1_2", "relu2_2"), thin=8)

    def __call__(self, cycled, real):
        early, deep = self.look.features(cycled[:, 0].flatten(0, 1)[:, None])
        with torch.no_grad():
            target = self.look.features(real[:, 0].flatten(0, 1)[:, None])[0]
        return F.l1_loss(early.detach(), target) + F.l1_loss(deep, deep)


class HistogramOfArrays:
    "Mutual information of arrays: a value that oscillates and trains nothing."

    def __call__(self, fake, real):
        p = np.histogram2d(fake.detach().numpy().ravel(), real.numpy().ravel(), 16)[0] + 1e-9
        p /= p.sum()
        return torch.tensor(-float((p * np.log(p / (p.sum(0) * p.sum(1, keepdims=True)))).sum()))


@pytest.fixture
def cycle():
    "Two directions and a discriminator, small."
    torch.manual_seed(0)
    nets = dict(
        mr2ct=generator("resnet1", width=4),
        ct2mr=generator("resnet1", width=4),
        disc_ct=discriminator(width=4, layers=1),
    )
    return nets, randoms(2, 1, 16, 16, 16).float(), randoms(2, 1, 16, 16, 16, seed=1).float()


FORMS = {
    "gradient_consistency": (WithArrays(), gradient_consistency),
    "perceptual": (WithItself(), Perceptual("random", width=4, thin=8)),
    "information": (HistogramOfArrays(), mutual_information),
}


@pytest.mark.parametrize("name", FORMS)
def test_inert_forms_are_stopped_by_name_and_correct_ones_pass(cycle, name):
    nets, mr, ct = cycle
    for form, trains in zip(FORMS[name], (False, True)):
        terms = {
            "cycle": lambda: 10 * l1(nets["ct2mr"](nets["mr2ct"](mr)), mr),
            name: lambda: form(nets["ct2mr"](nets["mr2ct"](mr)), mr),
        }
        rows = audit(terms, nets)
        if trains:
            check_audit(rows, {t: ("mr2ct", "ct2mr") for t in terms})
        else:
            with pytest.raises(InertLoss, match=f"{name} does not train mr2ct") as e:
                check_audit(rows, {t: ("mr2ct", "ct2mr") for t in terms})
            assert (e.value.term, e.value.network) == (name, "mr2ct")
            # also if nobody said whom it should train
            with pytest.raises(InertLoss, match=name):
                check_audit(rows)
            assert rows[1]["value"] != 0 and rows[1]["gradient"]["mr2ct"] == 0


@pytest.mark.parametrize("kind", ADVERSARIAL_KINDS)
def test_all_terms_pass_the_audit_with_spectral_networks(kind):
    torch.manual_seed(0)
    nets = dict(
        mr2ct=generator("resnet1", width=4, spectral=True),
        disc_ct=discriminator(width=4, layers=1, spectral=True, scales=2),
    )
    mr, ct, game = (
        randoms(2, 1, 16, 16, 16).float(),
        randoms(2, 1, 16, 16, 16, seed=1).float(),
        adversarial_loss(kind),
    )
    mr2ct, disc_ct = nets.values()
    contrast = PatchContrast([f.shape[1] for f in mr2ct.features(mr)], patches=32)
    look, nets["heads"] = Perceptual("random", width=4, thin=8), contrast
    terms = dict(
        fool=lambda: game.generator_loss(disc_ct(mr2ct(mr))),
        identity=lambda: 5 * l1(mr2ct(ct), ct),
        discriminator=lambda: game.real(disc_ct(ct)) + game.fake(disc_ct(mr2ct(mr).detach())),
        gradient=lambda: gradient_consistency(mr2ct(mr), mr),
        signed=lambda: gradient_consistency(mr2ct(mr), mr, signed=True),
        perceptual=lambda: look(mr2ct(mr), mr),
        information=lambda: mutual_information(mr2ct(mr), mr),
        shape=lambda: shape_loss(mr2ct(mr), body_mask(mr, threshold=0.1, close_mm=0)),
        contrast=lambda: contrast(mr2ct.features(mr), mr2ct.features(mr2ct(mr)), 0),
    )
    # let the spectral norms settle
    for net in nets.values():
        net(mr) if net is not contrast else None
    before = {
        name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in nets.items()
    }
    rows = audit(terms, nets)
    wanted = {t: ("mr2ct",) for t in terms if t != "discriminator"} | {
        "discriminator": ("disc_ct",),
        "contrast": ("mr2ct", "heads"),
    }
    check_audit(rows, wanted, detached=("contrast",))
    for row in rows:
        for net in wanted[row["term"]]:
            if row["term"] != "contrast":
                assert row["falls"][net], row
    assert not rows[2]["path"]["mr2ct"] and rows[2]["gradient"]["mr2ct"] == 0
    for name, net in nets.items():  # the audit leaves no trace
        for k, v in net.state_dict().items():
            assert torch.equal(v, before[name][k]), (name, k)
        assert all(p.grad is None for p in net.parameters())


def test_audit_leaves_dice_and_running_means_alone():
    torch.manual_seed(0)
    net, x = (
        nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.Dropout(0.5), nn.Conv3d(2, 1, 1)),
        randoms(2, 1, 6, 6, 6).float(),
    )
    dice, means = torch.get_rng_state(), net[1].running_mean.clone()
    rows = audit(dict(size=lambda: net(x).square().mean()), dict(net=net))
    assert torch.equal(torch.get_rng_state(), dice) and torch.equal(net[1].running_mean, means)
    assert 0.7 < rows[0]["ratio"]["net"] < 1.4
    assert audit(dict(size=lambda: net(x).square().mean()), dict(net=net)) == rows


class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, upper):
        return -upper


def test_a_loss_that_leads_uphill_is_stopped(cycle):
    nets, mr, ct = cycle
    terms = dict(
        identity=lambda: l1(nets["mr2ct"](ct), ct),
        wrong=lambda: l1(Backwards.apply(nets["mr2ct"](ct)), ct),
    )
    rows = audit(terms, dict(mr2ct=nets["mr2ct"]))
    assert rows[0]["falls"]["mr2ct"] is True and rows[1]["falls"]["mr2ct"] is False
    with pytest.raises(
        InertLoss, match="wrong does not train mr2ct: a walk against its gradient leads uphill"
    ):
        check_audit(rows)
    check_audit(rows, detached=("wrong",))


def test_a_rugged_network_raises_no_false_alarm():
    """Batch norm over a handful of voxels.

    No step is short enough for differences in single precision.
    """
    for seed in range(6):
        torch.manual_seed(seed)
        nets = dict(
            mr2ct=generator("unet_old", width=2, norm="batch"),
            ct2mr=generator("unet_old", width=2, norm="batch"),
        )
        mr = randoms(1, 1, 16, 16, 16, seed=seed).float()
        check_audit(
            audit(dict(cycle=lambda: l1(nets["ct2mr"](nets["mr2ct"](mr)), mr)), nets),
            dict(cycle=("mr2ct", "ct2mr")),
        )


def test_a_frozen_discriminator_gets_nothing(cycle):
    nets, mr, _ = cycle
    nets["disc_ct"].requires_grad_(False)
    rows = audit(
        dict(
            fool=lambda: adversarial_loss("least_squares").generator_loss(
                nets["disc_ct"](nets["mr2ct"](mr))
            )
        ),
        nets,
    )
    assert (
        rows[0]["gradient"]["disc_ct"] == 0
        and rows[0]["gradient"]["ct2mr"] == 0 < rows[0]["gradient"]["mr2ct"]
    )
    check_audit(rows, dict(fool=("mr2ct",)))
    with pytest.raises(InertLoss, match="fool does not train disc_ct"):
        check_audit(rows, dict(fool=("mr2ct", "disc_ct")))


def test_losses_take_what_mixed_precision_makes():
    half = [
        randoms(1, 3, 4, 4, 4).bfloat16(),
        randoms(1, 3, 4, 4, 4, seed=1).bfloat16().requires_grad_(),
    ]
    PatchContrast([3], width=4)([half[0]], [half[1]], 0).sum().backward()
    a, b = (
        randoms(1, 1, 18, 18, 18).bfloat16().requires_grad_(),
        randoms(1, 1, 18, 18, 18, seed=1).float(),
    )
    with torch.autocast("cpu", torch.bfloat16):
        value = Perceptual("random", width=4)(a, b)
    value.sum().backward()
    assert (
        value.dtype == torch.float32 and a.grad.isfinite().all() and half[1].grad.isfinite().all()
    )


def test_patch_contrast_knows_its_place():
    torch.manual_seed(0)
    x = F.normalize(torch.randn(1, 20, 8), dim=2)
    assert patch_nce(x, x) < 0.3 and patch_nce(x, x.roll(1, 1)) > 3
