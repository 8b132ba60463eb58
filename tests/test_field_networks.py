"""Networks are left as they were found, must fit their recipe, and plans count what the first step
does.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from medseg.segment.predict import SegmentRecipe, predict
from medseg.segment.unet import UNet
from medseg.train.loop import evaluation_mode
from medseg.train.memory import LiveBytes
from medseg.translate.perceptual import Perceptual
from medseg.translate.planner import plan_translate, step_bytes
from medseg.translate.predict import TranslateRecipe, translate_scan
from medseg.translate.settings import Settings
from medseg.translate.step import CycleGAN
from medseg.translate.loss_terms import check_terms
from medseg.io.volume import Volume

SCAN = Volume(np.random.default_rng(0).normal(0, 300, (16, 16, 6)).astype(np.int16), np.eye(4))


class Counted(nn.Module):
    "A generator with averages and dropout."

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.still = (
            nn.BatchNorm3d(1),
            nn.Dropout(0.5),
            nn.BatchNorm3d(1).eval(),
        )

    def forward(self, x):
        return self.drop(self.still(self.norm(x))).tanh()


def state(net):
    return (
        [p.clone() for p in net.state_dict().values()],
        [m.training for m in net.modules()],
        [p.requires_grad for p in net.parameters()],
    )


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a[0], b[0])) and a[1:] == b[1:]


@pytest.mark.parametrize("kind", ["segment", "translate"])
def test_a_network_in_training_is_asked_and_given_back(kind):
    if kind == "segment":
        net, recipe, ask = (
            SegmentRecipe(depth=3, width=4, levels=2).net(),
            SegmentRecipe(depth=3, width=4, levels=2),
            predict,
        )
    else:
        net, recipe, ask = (
            Counted(),
            TranslateRecipe(patch=(8, 8, 8)),
            lambda *a: translate_scan(*a)[0],
        )
    net.train()
    if kind == "translate":
        net.still.eval()
        net.norm.weight.requires_grad_(False)
    before = state(net)
    one, two = ask(net, recipe, SCAN), ask(net, recipe, SCAN)
    assert np.array_equal(one.voxels, two.voxels) and same(before, state(net))


def test_given_back_also_after_an_error():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).train()
    with pytest.raises(KeyError):
        with evaluation_mode(net):
            raise KeyError
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize(
    "net",
    [
        UNet(3, 5, "middle", width=4, levels=2),
        UNet(5, 2, "middle", width=4, levels=2),
        UNet(3, 2, "all", width=4, levels=2),
        nn.Conv2d(3, 4, 1),
    ],
    ids=["classes", "depth", "target", "any"],
)
def test_a_network_that_does_not_fit_its_recipe_is_refused(net):
    with pytest.raises(ValueError, match="must"):
        predict(net, SegmentRecipe(depth=3, width=4, levels=2), SCAN)


def test_a_generator_of_another_size_is_refused():
    with pytest.raises(ValueError, match="one volume of the size"):
        translate_scan(nn.AvgPool3d(2), TranslateRecipe(patch=(8, 8, 8)), SCAN)


TINY = Settings("resnet1", 4, disc_width=4, disc_layers=1, pool=0, ema=0)


@pytest.mark.parametrize("how", [dict(recompute=True), dict(gradient=1.0)], ids=str)
def test_the_plan_holds_the_audit_of_the_first_step(how):
    s = replace(TINY, **how)
    bill, model = step_bytes(s, (16, 16, 16), cpu=True), CycleGAN(s)
    with LiveBytes() as live:
        check_terms(
            model.terms, {name: torch.rand(1, 1, 16, 16, 16) * 2 - 1 for name in ("mr", "ct")}
        )
    assert live.peak <= 1.02 * sum(bill[k] for k in ("step", "audit"))


def test_a_card_that_holds_a_step_and_not_its_audit_does_not_fit():
    s = replace(TINY, recompute=True)
    bill = step_bytes(s, (24, 24, 24))
    room = (sum(bill.values()) - bill["audit"] / 2) / 2**30
    assert (
        bill["audit"] > 0 and not plan_translate(s, (24, 24, 24), gigabytes=room, spare=0)["fits"]
    )


def test_random_features_are_asked_for_by_name():
    with pytest.raises(TypeError, match="weights"):
        Perceptual()
    with pytest.raises(ValueError, match="random"):
        Perceptual("")
    assert Perceptual("random", width=2).standin


@pytest.mark.parametrize(
    "a",
    [
        torch.full((1, 1, 16, 16, 16), 1000.0),
        torch.full((1, 1, 16, 16, 16), -1000.0),
        torch.full((1, 1, 16, 16, 16), float("nan")),
    ],
    ids=["bone", "air", "nan"],
)
def test_hounsfield_units_are_no_network_numbers(a):
    with pytest.raises(ValueError, match="must lie in -1..1"):
        Perceptual("random", width=2)(a, torch.zeros_like(a))
    with pytest.raises(ValueError, match="b must lie in -1..1"):
        Perceptual("random", width=2)(torch.zeros_like(a), a)


def test_a_second_derivative_is_refused():
    x = torch.rand(1, 1, 16, 16, 16, requires_grad=True)
    value = Perceptual("random", width=2)(x, torch.zeros_like(x)).sum()
    with pytest.raises(NotImplementedError, match="first-order"):
        torch.autograd.grad(value, x, create_graph=True)
