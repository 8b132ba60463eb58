"""Generators and discriminators across their switches.

Shapes, gradients, repeatability, state, and what they are made of.
"""

import copy
from itertools import product

import pytest
import torch

from medseg.train.checkpoint import load_checkpoint, save_checkpoint
from medseg.train.memory import LiveBytes
from medseg.translate.fast_conv import use_fast_conv
from medseg.translate.discriminators import architecture, architecture_diff, discriminator
from medseg.translate.generators import generator
from medseg.translate.layers import spectral_layers

KINDS = ("unet_old", "unet_updated", "resnet1")
NORMS = ("instance", "batch", "none")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def volume(*shape, seed=0):
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


def dead(net):
    return [
        name
        for name, p in net.named_parameters()
        if p.grad is None or not (p.grad.isfinite().all() and p.grad.abs().max() > 0)
    ]


@pytest.mark.parametrize("kind,norm", list(product(KINDS, NORMS)))
def test_every_generator_learns_in_all_its_parts(kind, norm):
    for spectral, up, dims, residual in product(
        (False, True), ("resize", "transposed"), (2, 2.5, 3), (False, True)
    ):
        net, x = generator(kind, 4, norm, spectral, up, dims, residual), volume(2, 1, 10, 9, 4)
        y = net(x)
        assert y.shape == x.shape and y.dtype == x.dtype and y.abs().max() <= 1
        y.square().mean().backward()
        assert dead(net) == [], (spectral, up, dims, residual)
        assert all(m.kind == norm for m in net.modules() if type(m).__name__ == "Normalise")
        assert bool(spectral_layers(net)) == spectral


@pytest.mark.parametrize("norm,spectral,dims", list(product(NORMS, (False, True), (2, 2.5, 3))))
def test_every_discriminator_learns_in_all_its_parts(norm, spectral, dims):
    for layers, scales in product((1, 2), (1, 2)):
        net, x = discriminator(4, layers, norm, spectral, scales, dims), volume(
            2, 1, 26, 24, 25 if dims == 3 else 2
        )
        maps = net(x)
        assert len(maps) == scales and all(m.shape[:2] == (2, 1) and m.ndim == 5 for m in maps)
        sum(m.square().mean() for m in maps).backward()
        assert dead(net) == [], (layers, scales)


@pytest.mark.parametrize("kind", KINDS)
def test_any_size(kind):
    for norm, dims in product(NORMS, (2, 2.5, 3)):
        net = generator(kind, 2, norm, dims=dims)
        for size in product((1, 2, 7), repeat=3):
            y = net(volume(1, 1, *size))
            assert y.shape == (1, 1, *size) and y.isfinite().all(), (norm, dims, size)


@pytest.mark.parametrize("kind,norm", list(product(KINDS, ("instance", "none"))))
def test_items_of_a_batch_do_not_meet(kind, norm):
    for dims in (2, 2.5, 3):
        net, disc, x = (
            generator(kind, 4, norm, dims=dims).double(),
            discriminator(4, 1, norm, dims=dims).double(),
            volume(3, 1, 13, 12, 6).double(),
        )
        with torch.no_grad():
            swapped = [2, 0, 1]
            assert torch.allclose(net(x)[swapped], net(x[swapped]), atol=1e-10)
            assert torch.allclose(net(x)[1:2], net(x[1:2]), atol=1e-10)
            assert torch.allclose(disc(x)[0][swapped], disc(x[swapped])[0], atol=1e-10)


def gradients(net, x, checkpointing):
    net.checkpointing = checkpointing
    net.zero_grad()
    x = x.clone().requires_grad_()
    # used three times, as in a step of CycleGAN
    (net(x) + net(net(x)) + net(x.flip(2))).square().mean().backward()
    return [x.grad] + [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("kind,norm", list(product(KINDS, NORMS)))
def test_checkpointing_changes_nothing(kind, norm):
    for spectral, dims in product((False, True), (2.5, 3)):
        net, x = (
            generator(kind, 2, norm, spectral, dims=dims).double(),
            volume(2, 1, 9, 8, 5).double(),
        )
        assert all(
            torch.equal(a, b) for a, b in zip(gradients(net, x, False), gradients(net, x, True))
        )


@pytest.mark.parametrize(
    "make",
    (lambda: generator("resnet1", 4, spectral=True), lambda: discriminator(4, 1, "none", True, 2)),
)
@pytest.mark.parametrize("looked", (False, True))
def test_power_iteration_survives_a_file(make, looked, tmp_path):
    def train(net, opt, first, last):
        losses = []
        for i in range(first, last):
            out = net(volume(1, 1, 12, 12, 12, seed=i))
            loss = sum((m - 0.5).square().mean() for m in (out if isinstance(out, list) else [out]))
            opt.zero_grad()
            loss.backward()
            opt.step()
            losses.append(loss.item())
        return losses

    def adam(net):
        return torch.optim.Adam(net.parameters(), 0.01)

    start = make()
    whole = copy.deepcopy(start)
    unbroken = train(whole, adam(whole), 0, 6)
    part = copy.deepcopy(start)
    opt = adam(part)
    before = train(part, opt, 0, 3)
    if looked:
        part(volume(1, 1, 12, 12, 12))
    tensors, _ = load_checkpoint(
        save_checkpoint(tmp_path / "net.safetensors", part.state_dict(), {})
    )
    new = make()
    new.load_state_dict(tensors)
    going_on = adam(new)
    going_on.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert before + train(new, going_on, 3, 6) == unbroken
    assert all(
        torch.equal(a, b) for a, b in zip(new.state_dict().values(), whole.state_dict().values())
    )


@pytest.mark.parametrize("options", (dict(), dict(foreach=True), dict(fused=True)))
def test_every_kind_of_optimiser_is_noticed(options):
    "The power step is taken once after each change of the weights, and at no other time."
    net, x = generator("resnet1", 2, spectral=True), volume(1, 1, 8, 8, 8)
    opt, layer = torch.optim.Adam(net.parameters(), 0.1, **options), spectral_layers(net)[0]

    def state():
        return layer.parametrizations.weight[0]._u.clone()

    net(x).mean().backward()
    u = state()
    net(x)
    assert torch.equal(u, state())
    opt.step()
    net.eval()(x)
    assert torch.equal(u, state()), "in use nothing changes"
    net.train()(x)
    assert not torch.equal(u, state())
    u = state()
    net.features(x)
    assert torch.equal(u, state())


def test_spectral_weights_have_strength_one():
    for net in (generator("unet_updated", 4, spectral=True), discriminator(4, 2, spectral=True)):
        with torch.no_grad():
            for layer in spectral_layers(net):
                layer.parametrizations.weight.original.mul_(3)
        x = volume(1, 1, 24, 24, 24)
        for _ in range(40):
            with torch.no_grad():
                # a write, so a step
                for layer in spectral_layers(net):
                    layer.parametrizations.weight.original.mul_(1)
                net(x)
        for layer in spectral_layers(net):
            with torch.no_grad():
                weight = (
                    layer.weight.transpose(0, 1)
                    if "Transpose" in type(layer).__name__
                    else layer.weight
                )
            assert abs(torch.linalg.matrix_norm(weight.flatten(1), 2).item() - 1) < 0.05


def test_shapes_without_memory():
    """The note's sizes, on the meta device.

    Forwards, backwards, with checkpointing and spectral norms.
    """
    with torch.device("meta"), LiveBytes():  # as the planner asks
        for kind, width in (
            ("unet_old", 32),
            ("unet_updated", 64),
            ("resnet2", 64),
            ("resnet9", 64),
        ):
            net = generator(kind, width, spectral=True)
            net.checkpointing = True
            y = net(torch.empty(2, 1, 48, 256, 128))
            y.sum().backward()
            assert y.shape == (2, 1, 48, 256, 128) and all(
                p.grad is not None for p in net.parameters()
            )
        assert discriminator(64)(torch.empty(2, 1, 96, 96, 96))[0].shape == (2, 1, 10, 10, 10)


def test_half_precision():
    """As trainings use them.

    Quickened, since torch's own bf16 gradients are wrong at maps of two voxels a side on a CPU
    (chapter 5/05b).
    """
    for net in map(
        use_fast_conv,
        (
            generator("resnet1", 4, spectral=True),
            generator("unet_updated", 4, residual=True),
            discriminator(4, 1, spectral=True),
        ),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            out = net(volume(1, 1, 12, 12, 12))
        out = sum(m.float().mean() for m in (out if isinstance(out, list) else [out]))
        out.backward()
        assert out.isfinite() and dead(net) == []


def test_levels_fit_their_widths():
    for kind, dims in product(KINDS, (2, 2.5, 3)):
        net, x = generator(kind, 2, dims=dims), volume(2, 1, 20, 18, 6)
        levels = net.features(x)
        assert [f.shape[1] for f in levels] == list(net.widths) and all(
            f.ndim == 5 and len(f) == 2 for f in levels
        )
        sides = [f.shape[2] for f in levels]
        assert (
            sides == sorted(sides, reverse=True)
            and len(net.stages()) == len(list(net.down) + list(net.blocks) + list(net.up)) + 1
        )


def test_slices_stay_apart():
    "In two dimensions a slice is answered as if it were alone; in two and a half its order counts."
    for kind in KINDS:
        flat, thick, x = (
            generator(kind, 2, dims=2),
            generator(kind, 2, dims=2.5),
            volume(1, 1, 12, 11, 6),
        )
        with torch.no_grad():
            assert torch.allclose(flat(x)[..., 2:3], flat(x[..., 2:3]), atol=1e-5)
            assert torch.allclose(flat(x).flip(4), flat(x.flip(4)), atol=1e-5)
            assert not torch.allclose(thick(x).flip(4), thick(x.flip(4)), atol=1e-3)


def test_a_missing_norm_is_named():
    """L13: the discriminator without its instance norm has the same weights, and only the list
    of layers
    tells.
    """
    right, wrong = discriminator(4, 3), discriminator(4, 3)
    for i in reversed(
        [i for i, m in enumerate(wrong.discriminators[0]) if type(m).__name__ == "Normalise"]
    ):
        del wrong.discriminators[0][i]
    assert sum(p.numel() for p in right.parameters()) == sum(p.numel() for p in wrong.parameters())
    diff = architecture_diff(right, wrong)
    assert [(row["a"]["kind"], row["b"]) for row in diff] == [("InstanceNorm3d", None)] * 3
    assert architecture_diff(wrong, right) == [dict(a=row["b"], b=row["a"]) for row in diff]


def test_every_switch_shows_in_the_list_of_layers():
    plain = dict(kind="resnet2", width=4, norm="instance", spectral=False, up="resize", dims=3)
    for change in (
        dict(kind="resnet3"),
        dict(kind="unet_old"),
        dict(width=5),
        dict(norm="batch"),
        dict(norm="none"),
        dict(spectral=True),
        dict(up="transposed"),
        dict(dims=2),
        dict(dims=2.5),
    ):
        assert architecture_diff(generator(**plain), generator(**plain | change)), change
    for kind, spectral in product(KINDS, (False, True)):
        net = generator(kind, 2, spectral=spectral)
        assert architecture_diff(net, copy.deepcopy(net)) == []
        assert sum(row["parameters"] for row in architecture(net)) == sum(
            p.numel() for p in net.parameters()
        )


def test_the_numbers_of_the_field():
    """The 3-D ResNet of nine blocks and width 64, counted by hand.

    Stem, two halvings, 18 block convolutions, two doublings, head.
    """
    k = 27
    by_hand = (
        343 * 64
        + k * 64 * 128
        + k * 128 * 256
        + 18 * k * 256 * 256
        + k * 256 * 128
        + k * 128 * 64
        + (343 * 64 + 1)
    )
    with torch.device("meta"):
        assert sum(p.numel() for p in generator("resnet9", 64).parameters()) == by_hand
