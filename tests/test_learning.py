"Does it learn at all? Small, and where it could fail."

import pytest
import torch

from medseg.segment.losses import DiceCE
from medseg.segment.unet import UNet, join_classes

pytestmark = pytest.mark.usefixtures("one_thread")


def two_discs(slices=5, size=64, seed=0):
    """One slab: a liver and a spleen of the same brightness, told apart by place alone.

    Labels 1 and 2. Each shrinks its own way over z.
    """
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    z = torch.arange(slices)[:, None, None]
    liver = (y - 30) ** 2 + (x - 20) ** 2 < (11 - 1.5 * z) ** 2
    spleen = (y - 34) ** 2 + (x - 46) ** 2 < (5 + 1.5 * z) ** 2
    image = (
        0.4
        + 0.4 * (liver | spleen)
        + 0.05 * torch.randn(slices, size, size, generator=torch.Generator().manual_seed(seed))
    )
    return image[None], (liver.long() + 2 * spleen.long())[None]


def dice(answer, labels, c):
    return (
        2 * ((answer == c) & (labels == c)).sum() / ((answer == c).sum() + (labels == c).sum())
    ).item()


def fit(net, x, labels, steps):
    adam = torch.optim.AdamW(net.parameters(), 5e-3)
    for _ in range(steps):
        loss = DiceCE()(net(x), labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        return net(x)


@pytest.fixture(scope="module")
def learned(one_thread):
    torch.manual_seed(0)
    x, labels = two_discs()
    return fit(UNet(5, 3, width=8), x, labels, 80), labels


def test_unet_overfits_two_discs_of_equal_brightness(learned):
    logits, labels = learned
    assert min(dice(logits.argmax(1), labels, c) for c in (1, 2)) > 0.95


def test_swapped_layout_cannot_read_the_answer(learned):
    """The same thirty maps, read slice by slice instead of class by class.

    The same shape, and nonsense.
    """
    logits, labels = learned
    swapped = join_classes(logits).unflatten(1, (5, 3)).transpose(1, 2)
    assert swapped.shape == logits.shape
    assert min(dice(swapped.argmax(1), labels, c) for c in (1, 2)) < 0.5


def test_brightness_alone_cannot_tell_the_discs_apart():
    """The task needs place.

    The best answer from the value of a pixel alone gives both discs one label.
    """
    x, labels = two_discs()
    bright = x > 0.6
    assert max(min(dice(bright * c, labels, k) for k in (1, 2)) for c in (1, 2)) == 0


@pytest.mark.parametrize("attention", ["none", "channel", "spatial", "both"])
def test_middle_slice_is_learned_with_each_attention(attention):
    torch.manual_seed(0)
    x, labels = two_discs()
    answer = fit(UNet(5, 3, "middle", attention, width=8), x, labels[:, 2], 60).argmax(1)
    assert min(dice(answer, labels[:, 2], c) for c in (1, 2)) > 0.9
