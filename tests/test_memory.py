"""The byte counter is right whatever the device, the network and the way back.

And the system's own count agrees.
"""

import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from medseg.segment.unet import UNet
from medseg.train.memory import LiveBytes, flops, peak_rss, state_bytes
from medseg.translate.benchmark import STEP_FORMS, form_gradients, largest_distance
from medseg.translate.perceptual import Perceptual
from medseg.translate.planner import step_gradients, meta_model, step_bytes
from medseg.translate.settings import Settings
from medseg.translate.step import CycleGAN

pytestmark = pytest.mark.usefixtures("one_thread")


class Wide(nn.Module):
    """What makes counting hard.

    Views, in-place layers, joined maps, two outputs, a branch that is not used.
    """

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv3d(1, 4, 3, padding=1), nn.ConvTranspose3d(8, 2, 2, 2)
        self.norm, self.relu = nn.GroupNorm(2, 4), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.norm(self.a(x)))
        unused = y.exp()
        both = torch.cat([y, y.flip(2)[..., :].transpose(3, 4).transpose(3, 4)], 1)
        half, rest = self.b(both).chunk(2, 1)
        return half.square().mean() + rest.abs().mean() + 0 * unused.mean()


@pytest.mark.parametrize(
    "make, shape", [(Wide, (2, 1, 6, 6, 6)), (lambda: UNet(3, 2, width=8), (1, 3, 16, 16))]
)
def test_meta_and_cpu_count_alike(make, shape):
    found = {}
    for device in ("meta", "cpu"):
        net, x = make().to(device), torch.zeros(shape, device=device)
        net(x).mean().backward()  # gradients are there from the first step on
        with LiveBytes() as live:
            net(x).mean().backward()
        found[device] = live.peak, live.now, live.held, live.at_peak
    assert found["meta"] == found["cpu"] and found["meta"][0] > 0


def test_nothing_is_counted_twice_or_for_ever():
    x = torch.zeros(1000)
    with LiveBytes() as live:
        y = x + 1
        views = [y[i:] for i in range(100)] + [y.view(10, 100).T, y.detach()]
        assert live.now == 4000 == live.held
        y.add_(1).mul_(2)
        assert live.now == 4000
        del y
        assert live.now == 4000, "a view keeps the storage"
        del views
        assert live.now == 0
        for _ in range(200):
            x + 1  # addresses are used again
        assert live.now == 0 and live.peak == 4000
    assert sum(live.at_peak.values()) == live.peak


def test_a_block_may_end_before_its_tensors():
    with LiveBytes() as live:
        kept = torch.zeros(10) + 1
    assert live.now == 40
    del kept
    assert live.now == 0
    with pytest.raises(RuntimeError, match="size of tensor"), LiveBytes() as live:
        torch.zeros(2) + torch.zeros(3)
    assert torch.zeros(5).sum() == 0 and live.now == 0, "an error leaves no mode behind"


def test_names_nest():
    with LiveBytes() as live:
        with live.named("outer"):
            a = torch.zeros(10)
            with live.named("inner"):
                b = torch.zeros(20)
            c = torch.zeros(30)
    assert (
        live.at_peak == {"outer": 160, "inner": 80}
        and live.label == ""
        and len(a) + len(b) + len(c) == 60
    )


def test_flops_of_both_passes():
    conv, x = nn.Conv3d(2, 4, 3, padding=1, bias=False, device="meta"), torch.empty(
        1, 2, 8, 8, 8, device="meta", requires_grad=True
    )
    one = 2 * 512 * 2 * 4 * 27
    assert flops(lambda: conv(x)) == one
    assert flops(lambda: conv(x).sum().backward()) == 3 * one
    with LiveBytes() as live:
        conv(x).sum().backward()
    assert live.flops == 3 * one, "one run tells both"
    # what comes after the convolution must be made again, so the convolution too
    stage = nn.Sequential(conv, nn.Tanh())
    assert flops(lambda: checkpoint(stage, x, use_reentrant=False).sum().backward()) == 4 * one


def test_state_of_an_optimiser():
    net = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4))
    found = state_bytes(net)
    trained = sum(p.nbytes for p in net.parameters())
    assert found == dict(
        weights=trained + sum(b.nbytes for b in net.buffers()),
        gradients=trained,
        moments=2 * trained,
    )
    net(torch.rand(1, 1, 5, 5, 5)).sum().backward()
    adam = torch.optim.Adam(net.parameters())
    adam.step()
    assert (
        sum(v.nbytes for s in adam.state.values() for k, v in s.items() if k != "step")
        == found["moments"]
    )


def test_the_system_counts_the_same_bytes():
    """A fresh process that makes 300 MiB of maps.

    What it grows by is what was counted, within a tenth.
    """
    code = """
import torch
from medseg.train.memory import LiveBytes, peak_rss
torch.set_num_threads(1)
x = torch.zeros(25*2**20//4)
x.clone().sin()
before = peak_rss()
with LiveBytes() as live:
    y = x.clone().requires_grad_()
    for _ in range(11): y = y.sin()
print(live.peak, peak_rss() - before)
"""
    counted, grown = map(
        int,
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split(),
    )
    assert counted == 12 * 25 * 2**20
    assert 0.75 * counted < grown < 1.1 * counted, "what was freed before may be used again"
    assert peak_rss() > 50 * 2**20


# ---- a translation step: what is planned is what a real one takes, and the frugal forms keep their
# promises

TINY = Settings("resnet1", 4, disc_width=4, disc_layers=1, pool=0, steps=4)


@pytest.mark.parametrize(
    "how",
    [
        {},
        dict(perceptual=1.0, share=0.3),
        dict(contrast=1.0),
        dict(spectral=True, disc_spectral=True),
        dict(generator="unet_updated"),
        dict(dims=2.5, norm="batch"),
        dict(recompute=True, checkpointing=True),
        dict(one_backward=True),
        dict(amp="bf16"),
    ],
    ids=str,
)
def test_the_plan_is_what_a_real_step_takes(how):
    s = replace(TINY, **how)
    with meta_model(s, cpu=True) as model, LiveBytes() as planned:
        step_gradients(model, (16, 16, 16))
    real = CycleGAN(s)
    with LiveBytes() as taken:
        step_gradients(real, (16, 16, 16))
    assert planned.peak == pytest.approx(taken.peak, rel=0.02)


def test_a_whole_step_with_adam_and_pools_stays_below_the_bill():
    """After two real steps all that is counted apart is there.

    The step's own bytes are those of the plan.
    """
    s = replace(TINY, pool=3)
    bill = step_bytes(s, (16, 16, 16), cpu=True)
    mr, ct = torch.rand(1, 1, 16, 16, 16), torch.rand(1, 1, 16, 16, 16)
    with LiveBytes() as live:
        model = CycleGAN(s)
        for _ in range(2):
            model.step(mr, ct)
    assert live.peak == pytest.approx(
        sum(n for kind, n in bill.items() if kind != "audit"), rel=0.02
    )


@pytest.mark.parametrize(
    "how",
    [
        dict(perceptual=1.0, contrast=1.0),
        dict(spectral=True, disc_spectral=True, norm="batch"),
        dict(generator="unet_old"),
    ],
    ids=str,
)
def test_the_frugal_forms_have_the_same_gradients(how, monkeypatch):
    "At full size, and with the memory that they save, in chapter 5/10."
    # as deep as VGG16, a sixteenth as wide
    monkeypatch.setattr(
        "medseg.translate.loss_terms.Perceptual", partial(Perceptual, width=4, thin=12)
    )
    s = replace(TINY, gradient=1.0, signed=True, **how)
    dice = torch.Generator().manual_seed(1)
    mr, ct = (
        torch.rand(2, 1, 12, 12, 12, generator=dice, dtype=torch.float64) * 2 - 1 for _ in range(2)
    )
    textbook = form_gradients("one sum", s, mr, ct)
    for form in list(STEP_FORMS)[1:5]:
        assert largest_distance(form_gradients(form, s, mr, ct), textbook) < 1e-10, form
