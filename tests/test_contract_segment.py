"What the 2.5-D network promises, over its settings: shapes, sizes, attention, gradients."

import itertools
import warnings

import pytest
import torch

from medseg.segment.attention import KINDS, ChannelAttention, SpatialAttention
from medseg.segment.losses import DiceCE
from medseg.segment.unet import (
    ResBlock,
    Stage,
    UNet,
    join_classes,
    logit_rank,
    parameters_without_gradient,
    split_classes,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("slices,classes", [*itertools.product((1, 2, 5, 10, 16), (2, 3, 15))])
def test_all_slices_of_all_classes(slices, classes):
    net = UNet(slices, classes, width=4, levels=3)
    assert net(torch.rand(2, slices, 16, 24)).shape == (2, classes, slices, 16, 24)


@pytest.mark.parametrize("slices,classes", [*itertools.product((1, 3, 5, 7), (2, 3))])
def test_middle_slice(slices, classes):
    assert UNet(slices, classes, "middle", width=4, levels=3)(
        torch.rand(2, slices, 16, 24)
    ).shape == (2, classes, 16, 24)


@pytest.mark.parametrize("size", [(1, 1), (7, 200), (31, 33), (65, 64), (17, 16)])
@pytest.mark.parametrize("levels", [2, 4, 5])
def test_odd_sizes_come_back_as_they_went_in(size, levels):
    out = UNet(3, 3, width=4, levels=levels)(torch.rand(1, 3, *size))
    assert out.shape == (1, 3, 3, *size) and out.isfinite().all()


def test_padding_moves_nothing():
    """A slab that fits needs no padding.

    Padding it by hand as the network would gives the same voxels.
    """
    torch.manual_seed(0)
    net, slab = UNet(3, 2, width=4), torch.rand(1, 3, 29, 38)
    by_hand = torch.nn.functional.pad(slab, (0, 2, 0, 3), mode="replicate")
    assert torch.equal(net(slab), net(by_hand)[..., :29, :38])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [2, 4, 5])
def test_one_attention_behind_each_block(kind, levels):
    net = UNet(5, 3, attention=kind, width=4, levels=levels)
    stages = [m for m in net.modules() if isinstance(m, Stage)]
    assert len(stages) == sum(isinstance(m, ResBlock) for m in net.modules()) == 2 * levels - 1
    for stage in stages:
        block, layer = stage.children()
        assert isinstance(block, ResBlock)
        found = [
            type(m) for m in layer.modules() if isinstance(m, (ChannelAttention, SpatialAttention))
        ]
        assert (
            found
            == {
                "none": [],
                "channel": [ChannelAttention],
                "spatial": [SpatialAttention],
                "both": [ChannelAttention, SpatialAttention],
            }[kind]
        )


@pytest.mark.parametrize(
    "kind,target,levels", [*itertools.product(KINDS, ("all", "middle"), (2, 4))]
)
@pytest.mark.parametrize("seed", range(3))
def test_every_parameter_gets_a_gradient(kind, target, levels, seed):
    torch.manual_seed(seed)
    net = UNet(5, 3, target, kind, width=8, levels=levels)
    assert parameters_without_gradient(net, torch.rand(2, 5, 32, 40)) == []


def test_layout_is_class_major():
    for classes, slices in itertools.product((2, 3, 4), (2, 3, 10)):
        maps = torch.arange(classes * slices)[None, :, None, None].expand(2, -1, 3, 3)
        apart = split_classes(maps, classes, slices)
        assert all(
            (apart[:, c, s] == c * slices + s).all() for c in range(classes) for s in range(slices)
        )
        assert torch.equal(join_classes(apart), maps)
        if classes != slices:
            with pytest.raises(ValueError):
                split_classes(maps[:, 1:], classes, slices)


def test_each_channel_of_the_head_answers_for_its_class_and_slice():
    """Through the whole network.

    Only the bias of one head channel is raised, and one class of one slice wins there alone.
    """
    net = UNet(4, 3, width=4, levels=2)
    for c, s in itertools.product(range(3), range(4)):
        with torch.no_grad():
            net.head.weight.zero_(), net.head.bias.zero_()
            net.head.bias[c * 4 + s] = 1
            won = net(torch.rand(1, 4, 8, 8)) == 1
        assert won[0, c, s].all() and won.sum() == 64


def test_narrow_last_block_warns_and_limits_the_rank():
    torch.manual_seed(0)
    slab = torch.rand(1, 10, 48, 48)
    with pytest.warns(UserWarning, match="10 maps for 30 outputs"):
        narrow = UNet(10, 3, last=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wide = UNet(10, 3)
    assert (logit_rank(narrow, slab)[0], logit_rank(wide, slab)[0]) == (10, 30)


@pytest.mark.parametrize("target", ["all", "middle"])
def test_loss_fits_the_network(target):
    torch.manual_seed(0)
    net, slab = UNet(5, 3, target, width=4), torch.rand(2, 5, 19, 23)
    labels = torch.randint(0, 3, (2, 5, 19, 23) if target == "all" else (2, 19, 23))
    loss = DiceCE()(net(slab), labels)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in net.parameters())


def test_weights_survive_a_file_and_the_memory_layout(tmp_path):
    torch.manual_seed(0)
    net, other, slab = UNet(5, 3, width=4), UNet(5, 3, width=4), torch.rand(1, 5, 21, 30)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    other.load_state_dict(torch.load(tmp_path / "w.pt"))
    assert torch.equal(net(slab), other(slab))
