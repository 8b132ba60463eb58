"""Attention that lets the signal through at the start, trainings that do not end empty, and
checkpoints of the old gates.
"""

import itertools
from dataclasses import asdict

import numpy as np
import pytest
import torch

from medseg.data.cases import Case, SlabSampling, slab_batches, sample_slab
from medseg.segment.attention import (
    KINDS,
    GATE,
    ChannelAttention,
    SpatialAttention,
    attention,
    gate_weight,
)
from medseg.segment.losses import DiceCE
from medseg.segment.predict import SegmentRecipe, load_model, predict, save_model
from medseg.segment.report import mark_empty
from medseg.segment.unet import UNet, attention_maps, parameters_without_gradient, perturbed
from medseg.train.checkpoint import save_checkpoint
from medseg.train.loop import fit, seed_everything
from medseg.io.files import InputError
from medseg.io.volume import Volume

pytestmark = pytest.mark.usefixtures("one_thread")


def plain_and(kind, slices, target, seed=0):
    "A U-Net without attention, and one with attention and the same weights everywhere else."
    torch.manual_seed(seed)
    plain, other = (UNet(slices, 3, target, k, width=8, levels=3) for k in ("none", kind))
    missing, unknown = other.load_state_dict(plain.state_dict(), strict=False)
    assert not unknown and all("attention" in name for name in missing)
    return plain, other


# ---- open at the start


@pytest.mark.parametrize(
    "kind,slices", [*itertools.product(("channel", "spatial", "both"), (1, 3, 10))]
)
def test_a_network_with_attention_begins_as_one_without(kind, slices):
    plain, other = plain_and(kind, slices, "all" if slices == 10 else "middle")
    for x in (
        torch.rand(2, slices, 37, 24),
        torch.zeros(1, slices, 16, 16),
        50 * torch.randn(1, slices, 16, 16),
    ):
        assert torch.equal(plain(x), other(x))
        assert all((w == 1).all() for w in attention_maps(other, x).values())


def test_a_gate_can_close_and_open():
    assert gate_weight(torch.tensor([-50.0, 0.0, 50.0])).tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ("channel", "spatial", "both"))
def test_no_kind_is_a_stub(kind):
    """After some steps of training each attention answers differently for different input, and
    taking it out changes the answer.
    """
    torch.manual_seed(0)
    net, (x, y) = UNet(3, 2, "middle", kind, width=8, levels=3), blobs(0)
    for _ in fit(net, [(x, y, ["anna"])] * 12, DiceCE(), 12, 0.01):
        pass
    for w, v in zip(
        attention_maps(net, x).values(), attention_maps(net, x.flip(0)).values(), strict=True
    ):
        assert (w != 1).any() and not torch.equal(w, v)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_flows_from_the_first_step_on(kind):
    """A fresh network moves its silent answers at once, and all else of the attention from the
    second step on.
    """
    torch.manual_seed(0)
    net, (x, y) = UNet(3, 2, "middle", kind, width=8, levels=3), blobs(0)
    DiceCE()(net(x), y).backward()
    waiting = [name for name, p in net.named_parameters() if not p.grad.abs().max() > 0]
    assert all("compare" in name for name in waiting) and bool(waiting) == (
        kind in ("channel", "both")
    )
    for _ in fit(net, [(x, y, ["anna"])], DiceCE(), 1, 0.01):
        pass
    net.zero_grad()
    DiceCE()(net(x), y).backward()
    assert all(p.grad.abs().max() > 0 for p in net.parameters())
    assert parameters_without_gradient(net, x) == []


def test_the_audit_still_names_a_stub():
    "Moved a little or not, weights that reach nothing are dead."
    net = UNet(3, 2, "middle", "both", width=8, levels=3)
    net.down[1].attention[0].forward = lambda x: x
    assert {
        name.split(".attention.")[0]
        for name in parameters_without_gradient(net, torch.rand(1, 3, 16, 16))
    } == {"down.1"}
    assert any(
        "attention.0" in name for name in parameters_without_gradient(net, torch.rand(1, 3, 16, 16))
    )


def test_no_kind_halves_the_signal_even_when_moved():
    """Weights of freshly drawn answers lie around 1, so that stacking them keeps the size of what
    passes.
    """
    torch.manual_seed(0)
    for kind in ("channel", "spatial", "both"):
        layer, x = perturbed(attention(kind, 16), 0.1), torch.rand(4, 16, 20, 20)
        assert 0.6 < (layer(x).mean() / x.mean()).item() < 1.5


@pytest.mark.parametrize("kind,classes", [*itertools.product(KINDS, (2, 3, 8))])
def test_a_fresh_network_prefers_no_class(kind, classes):
    """Its loss is near that of equal chances, from any seed.

    A head that is sure of one class loses its first steps to unlearning it.
    """
    equal = DiceCE()(
        torch.zeros(2, classes, 24, 24),
        torch.randint(0, classes, (2, 24, 24), generator=torch.Generator().manual_seed(0)),
    ).item()
    for seed in range(6):
        torch.manual_seed(seed)
        net = UNet(3, classes, "middle", kind, width=8, levels=3)
        loss = DiceCE()(net(torch.rand(2, 3, 24, 24)), torch.randint(0, classes, (2, 24, 24)))
        assert loss.item() == pytest.approx(equal, abs=0.4)


# ---- trainings


def blobs(seed, n=8):
    """Slabs of three slices with a bright disc and a dim one of which only the first is asked for;
    class 1 fills a twentieth.
    """
    dice = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    at = torch.randint(8, 24, (2, n, 2, 1, 1), generator=dice)
    bright, dim = (((y - p[:, 0]) ** 2 + (x - p[:, 1]) ** 2 < 16) for p in at)
    image = 0.3 * dim + 0.6 * bright + 0.08 * torch.randn(n, 32, 32, generator=dice)
    return image[:, None].expand(-1, 3, -1, -1).float(), bright.long()


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_training_does_not_end_empty(kind):
    seed_everything(1)
    net = UNet(3, 2, "middle", kind, width=4, levels=3)
    for _ in fit(net, ((*blobs(step), ["anna"]) for step in range(60)), DiceCE(), 60, 0.01):
        pass
    x, y = blobs(99)
    found = net(x).argmax(1)
    assert (2 * ((found == 1) & (y == 1)).sum() / ((found == 1).sum() + y.sum())).item() > 0.6


def test_a_training_that_found_nothing_is_told_by_class_and_training():
    def row(kind, depth, seed, found, held):
        return {"class": kind, "depth": depth, "seed": seed, "pred_ml": found, "label_ml": held}

    table = [
        row("liver", 1, 0, 0.0, 1300.0),
        row("liver", 1, 0, 0.0, 0.0),
        row("liver", 3, 0, 900.0, 0.0),
        row("liver", 3, 0, 0.0, 1200.0),
        row("lesion", 1, 0, 12.0, 9.0),
        row("lesion", 3, 0, 0.0, 9.0),
        row("cyst", 1, 0, 0.0, 0.0),
    ]
    assert mark_empty(table, ("depth", "seed")) == [
        "liver, depth 1, seed 0",
        "lesion, depth 3, seed 0",
    ]
    assert [r["empty"] for r in table] == [True, True, False, False, False, True, False]


def case(held, depth=20):
    "Twenty slices, of which the first `held` hold class 1."
    classes = np.zeros((depth, 8, 8), np.uint8)
    classes[:held, 2:5, 2:5] = 1
    return Case(
        "anna",
        np.zeros((depth, 8, 8), np.int16),
        classes,
        (5.0, 1.0, 1.0),
        {1: np.arange(held)} if held else {},
    )


@pytest.mark.parametrize(
    "held,asked", [*itertools.product((1, 2, 10), (0.0, 0.3, 0.6, 1.0)), (0, 0.6)]
)
def test_slabs_hold_a_class_as_often_as_was_asked(held, asked):
    """The share asked for, and by chance some of the rest.

    Asked + (1 - asked)·held/20, for rare and for common classes.
    """
    how, rng = SlabSampling(1, "middle", (8, 8), foreground=asked), np.random.default_rng(0)
    share = np.mean([(sample_slab([case(held)], how, rng)[1] == 1).any() for _ in range(800)])
    wanted = (asked + (1 - asked) * held / 20) if held else 0.0
    assert share == pytest.approx(wanted, abs=0.055)


def test_batches_of_rare_classes_are_not_empty():
    "Empty slices stay a minority of a batch, so that a training never sees nothing for long."
    how = SlabSampling(3, "middle", (8, 8), batch=8, foreground=0.6)
    assert all((y == 1).any() for _, y, _ in slab_batches([case(1), case(2)], how, 40))


def test_three_classes_come_out_as_three_values():
    """A network that answers the class of the brightness.

    Mask values are those of the classes, slice by slice.
    """

    class Bands(torch.nn.Module):
        def forward(self, x):
            return torch.stack([-((x - v) ** 2) for v in (0, 0.5, 1)], 1)

    hu = np.zeros((6, 7, 9), np.float32)
    hu[1:3], hu[3:5], hu[5:] = -140, 60, 260
    hu[0] = -140
    mask = predict(
        Bands().eval(),
        SegmentRecipe(3, "all", 3, inplane_mm=0.0, largest=False, names=("liver", "tumour")),
        Volume(hu, np.eye(4)),
    )
    assert (
        (mask.voxels[:3] == 0).all()
        and (mask.voxels[3:5] == 1).all()
        and (mask.voxels[5] == 2).all()
    )


# ---- checkpoints of the old gates


def as_before(path, net, recipe):
    "A checkpoint as it was written when gates were a sigmoid: no forms."
    save_checkpoint(path, net.state_dict(), dict(kind="segment", recipe=asdict(recipe)))


@pytest.mark.parametrize("kind", ("channel", "spatial", "both"))
def test_weights_of_the_old_gates_are_refused(tmp_path, kind):
    recipe = SegmentRecipe(attention=kind, width=4, levels=2)
    as_before(tmp_path / "old.safetensors", recipe.net(), recipe)
    with pytest.raises(InputError, match="forms: found none; needs .*1 \\+ tanh.*train it again"):
        load_model(tmp_path / "old.safetensors")


def test_weights_without_attention_and_new_ones_are_read(tmp_path):
    for kind in KINDS:
        recipe = SegmentRecipe(attention=kind, width=4, levels=2)
        net = perturbed(recipe.net()).eval()
        save_model(tmp_path / f"{kind}.safetensors", net, recipe, {})
        again, found = load_model(tmp_path / f"{kind}.safetensors")
        x = torch.rand(1, 5, 16, 16)
        assert found == recipe and torch.equal(again(x), net(x))
    recipe = SegmentRecipe(attention="none", width=4, levels=2)
    as_before(tmp_path / "old.safetensors", recipe.net(), recipe)
    assert load_model(tmp_path / "old.safetensors")[1] == recipe


def test_another_gate_cannot_be_read_by_chance(tmp_path, monkeypatch):
    "Whichever way the arithmetic changes, the form tells."
    recipe = SegmentRecipe(attention="spatial", width=4, levels=2)
    save_model(tmp_path / "new.safetensors", recipe.net(), recipe, {})
    assert SpatialAttention.form == ChannelAttention.form == GATE
    monkeypatch.setattr(SpatialAttention, "form", "2 sigmoid")
    with pytest.raises(InputError, match="1 \\+ tanh.*2 sigmoid"):
        load_model(tmp_path / "new.safetensors")
