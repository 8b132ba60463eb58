"""The CycleGAN as a whole.

Equal gradients in every form of the step, all losses alive in every network. That a killed
training goes on exactly is seen in test_translate_run.py, with the whole experiment.
"""

import copy
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from medseg.train.memory import LiveBytes
from medseg.translate.gradient_audit import InertLoss
from medseg.translate.generators import generator
from medseg.translate.networks import run_network
from medseg.translate.perceptual import Perceptual
from medseg.translate.fast_conv import use_fast_conv
from medseg.translate.settings import LOSSES, Settings
from medseg.translate.state import load_state, save_state, state_tensors
from medseg.translate.step import (
    CycleGAN,
    fit_cyclegan,
    generator_gradients,
    discriminator_gradients,
)
from medseg.translate.loss_terms import check_terms, trained_by, loss_routes

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = Settings("resnet1", 3, disc_width=3, disc_layers=1, steps=12, pool=3, lr=1e-3, lr_disc=1e-3)
ALL = {name: 1.0 for name in LOSSES}


def blobs(seed, size=16, batch=1):
    x = (
        F.avg_pool3d(
            torch.randn(batch, 1, *[size + 8] * 3, generator=torch.Generator().manual_seed(seed)),
            9,
            1,
        )
        * 25
    )
    mr, ct = torch.cos(2 * x).clamp(-1, 1), (torch.tanh(x) - 0.2 * x.abs()).clamp(-1, 1)
    for v in (mr, ct):
        v[..., :4] = -1  # air
    return mr, ct


def batches(first, steps, size=16, batch=1):
    for step in range(first, steps):
        yield blobs(2 * step, size, batch)[0], blobs(2 * step + 1, size, batch)[1], f"blobs {step}"


def gradients(s, batch=2):
    "All gradients of one step in double precision, the running averages, and the values."
    model = CycleGAN(s)
    for net in model.networks.values():
        net.double()
    if model.terms.vgg:
        model.terms.vgg = Perceptual("random", share=0.06, width=4, thin=12).double()
    volumes = dict(zip(("mr", "ct"), (x.double() for x in blobs(0, 12, batch))))
    fakes, values = generator_gradients(model, volumes)
    assert all(
        p.grad is None for net in model.discriminators for p in net.parameters()
    ), "the discriminators were taught in the generators' step"
    assert all(p.requires_grad for net in model.discriminators for p in net.parameters())
    values |= discriminator_gradients(model, volumes, fakes)
    grads = {
        f"{name}.{k}": p.grad
        for name, net in model.networks.items()
        for k, p in net.named_parameters()
    }
    state = {
        f"{name}.{k}": b.double()
        for name, net in model.networks.items()
        for k, b in net.named_buffers()
    }
    return {k: g for k, g in grads.items() if g is not None}, state, values


FORMS = {
    "grouped": {},
    "checkpointed": dict(checkpointing=True),
    "recomputed": dict(recompute=True),
    "both": dict(recompute=True, checkpointing=True),
}


@pytest.mark.parametrize(
    "base",
    [
        replace(SMALL, **ALL, share=0.06),
        replace(SMALL, norm="batch", disc_norm="batch", gradient=1.0),
        replace(
            SMALL,
            spectral=True,
            disc_spectral=True,
            disc_scales=2,
            adversarial_kind="hinge",
            shape=1.0,
        ),
        replace(SMALL, cycle=0.0, contrast=1.0),
        replace(SMALL, generator="unet_old", dims=2.5, adversarial_kind="logistic"),
        replace(SMALL, cycle=0.0, identity=0.0, gradient=1.0, signed=True),
    ],
    ids=["all losses", "batch norm", "spectral", "CUT", "2.5-D", "no cycle"],
)
def test_every_form_has_the_textbook_gradients(base):
    grads, state, values = gradients(replace(base, one_backward=True))
    assert set(name.split(".")[0] for name in grads) == set(CycleGAN(base).networks)
    for form, how in FORMS.items():
        other, after, found = gradients(replace(base, **how))
        assert list(other) == list(grads), form
        scale = {
            net: max(g.norm().item() for name, g in grads.items() if name.startswith(net + "."))
            for net in CycleGAN(base).networks
        }
        for name, g in grads.items():
            assert (other[name] - g).norm() <= 1e-12 * scale[name.split(".")[0]], (form, name)
        for name, b in state.items():
            torch.testing.assert_close(after[name], b, rtol=1e-12, atol=1e-12, msg=f"{form} {name}")
        for name, v in values.items():
            torch.testing.assert_close(found[name], v, rtol=1e-12, atol=1e-12, msg=f"{form} {name}")


def kept_bytes(s):
    "The most that autograd keeps for the way back in one step."
    now, most = [0], [0]

    class Box:
        def __init__(self, t):
            self.t, self.size = t, t.numel() * t.element_size()
            now[0] += self.size
            most[0] = max(most[0], now[0])

        def __del__(self):
            now[0] -= self.size

    model, (mr, ct) = CycleGAN(s), blobs(0, 24)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: Box(t.detach()), lambda box: box.t):
        generator_gradients(model, dict(mr=mr, ct=ct))
    return most[0]


def test_saved_memory_falls_from_form_to_form():
    s = replace(SMALL, generator="resnet3", width=6, disc_width=6, gradient=1.0)
    whole, grouped, recomputed, both = (
        kept_bytes(replace(s, **how))
        for how in (dict(one_backward=True), {}, dict(recompute=True), FORMS["both"])
    )
    assert grouped < 0.5 * whole and recomputed < 0.6 * grouped and both < 0.6 * recomputed


GENERATORS = ("unet_old", "unet_updated", "resnet2", "resnet6", "resnet9")


@pytest.mark.parametrize("kind, norm", list(product(GENERATORS, ("instance", "batch", "none"))))
def test_every_generator_norm_and_loss_trains(kind, norm):
    "Every loss audited with every generator and norm; then two steps with all of them."
    width = 3 if kind.startswith("resnet") else 2
    s = replace(
        SMALL, generator=kind, width=width, norm=norm, steps=2, share=0.06, patches=16, **ALL
    )
    model = CycleGAN(s)
    model.terms.vgg = Perceptual("random", share=0.06, width=4, thin=12)
    before = {name: [p.clone() for p in net.parameters()] for name, net in model.networks.items()}
    rows = list(fit_cyclegan(model, batches(0, 2, 12)))  # the first step audits each loss alone
    assert len(rows) == 2 and all(np.isfinite(v) for row in rows for v in row.values())
    assert {f"{loss}_{m}" for loss in LOSSES for m in ("mr", "ct")} <= set(rows[0])
    for name, net in model.networks.items():
        assert any(
            (a != b).any() for a, b in zip(before[name], net.parameters())
        ), f"{name} did not move"


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_alone(loss):
    s = replace(SMALL, **{name: float(name == loss) for name in LOSSES}, share=0.06)
    model = CycleGAN(s)
    rows = list(fit_cyclegan(model, batches(0, 2)))
    named = {k.rsplit("_", 1)[0] for row in rows for k in row if k.split("_")[0] in LOSSES}
    assert named == {loss}


@pytest.mark.parametrize("kind", ("least_squares", "hinge", "logistic"))
@pytest.mark.parametrize("dims", (2, 2.5, 3))
def test_adversarial_kinds_and_dimensions(kind, dims):
    s = replace(
        SMALL, adversarial_kind=kind, dims=dims, disc_scales=2, disc_spectral=True, residual=True
    )
    rows = list(fit_cyclegan(CycleGAN(s), batches(0, 2)))
    assert 0 <= rows[0]["right_real_ct"] <= 1 and rows[1]["norm_disc_mr"] > 0


def test_a_loss_that_teaches_nobody_stops_the_run():
    model = CycleGAN(replace(SMALL, gradient=1.0))
    honest = model.terms.of_fake

    def detached(w, source, fake, step):
        terms = honest(w, source, fake, step)
        return terms | (
            {"gradient_mr": lambda: honest(w, source, fake.detach(), step)["gradient_mr"]()}
            if w.goal == "mr"
            else {}
        )

    model.terms.of_fake = detached
    with pytest.raises(InertLoss, match="gradient_mr does not train ct2mr"):
        next(fit_cyclegan(model, batches(0, 1)))
    assert model.done == 0


def test_the_audit_leaves_no_trace():
    s = replace(SMALL, norm="batch", spectral=True, disc_spectral=True)
    model = CycleGAN(s)
    before = {k: v.clone() for k, v in state_tensors(model).items()}
    mr, ct, _ = next(batches(0, 1))
    rows, inert = check_terms(model.terms, dict(mr=mr, ct=ct))
    assert (
        not inert
        and {r["term"] for r in rows} == set(loss_routes(model.terms, dict(mr=mr, ct=ct)))
        and all(trained_by(r["term"]) for r in rows)
    )
    after = state_tensors(model)
    assert all(torch.equal(before[k], after[k]) for k in before if not k.endswith("settled"))
    assert all(p.requires_grad for net in model.networks.values() for p in net.parameters())


def test_discriminators_do_not_move_in_the_generators_step_and_the_other_way_round():
    model, (mr, ct) = CycleGAN(replace(SMALL, lr=0.0)), blobs(0)
    before = [p.clone() for p in model.generators[0].parameters()]
    model.step(mr, ct)
    assert all(torch.equal(a, b) for a, b in zip(before, model.generators[0].parameters()))
    model = CycleGAN(replace(SMALL, lr_disc=0.0))
    before = [p.clone() for p in model.discriminators[0].parameters()]
    model.step(mr, ct)
    assert all(torch.equal(a, b) for a, b in zip(before, model.discriminators[0].parameters()))


def test_nan_stops_before_any_weight_changes():
    model, (mr, ct) = CycleGAN(SMALL), blobs(0)
    model.step(mr, ct)
    before = {k: v.clone() for k, v in state_tensors(model).items() if not k.startswith("rng")}
    with pytest.raises(
        FloatingPointError, match="(identity_ct|adversarial_mr|cycle_ct) is nan at step 1"
    ):
        model.step(mr, ct * float("nan"))
    after = state_tensors(model)
    assert (
        all(
            torch.equal(before[k], after[k])
            for k in before
            if k.split("/")[0] in ("net", "ema", "adam")
        )
        and model.done == 1
    )


def test_bf16_is_near_the_full_precision():
    rows = [
        list(fit_cyclegan(CycleGAN(replace(SMALL, amp=amp, gradient=1.0)), batches(0, 6)))
        for amp in ("none", "bf16")
    ]
    for one, two in zip(*rows):
        for name in ("cycle_mr", "identity_ct", "gradient_ct", "disc_ct"):
            assert abs(one[name] - two[name]) < 0.1 * abs(one[name]) + 0.02, name
    assert rows[0] != rows[1]
    assert all(
        p.dtype == torch.float32
        for p in CycleGAN(replace(SMALL, amp="bf16")).networks["mr2ct"].parameters()
    )


def test_a_step_on_the_meta_device():
    "What the memory planner does: shapes without content."
    for how in (
        {},
        dict(one_backward=True),
        dict(recompute=True, checkpointing=True),
        dict(contrast=1.0, cycle=0.0),
        dict(amp="bf16"),
    ):
        model = CycleGAN(replace(SMALL, gradient=1.0, **how), "meta")
        x = torch.empty(1, 1, 16, 16, 16, device="meta")
        # a counter is there, as it is for the planner
        with LiveBytes() as live:
            assert model.step(x, x)["step"] == 0 and model.step(x, x)["step"] == 1
        assert live.peak > 0


def test_one_pass_a_fake_and_none_that_is_not_needed():
    """The generators are asked six times in a full step, four times without identity, and twice
    more when graphs are recomputed.
    """

    def asked(**how):
        model, count = CycleGAN(replace(SMALL, **how)), []
        for name in model.networks:
            model.networks[name].register_forward_hook(lambda *_, name=name: count.append(name))
        model.step(*blobs(0))
        return sum("2" in n for n in count), sum("disc" in n for n in count)

    assert asked() == (6, 6)
    assert asked(identity=0.0) == (4, 6)
    assert asked(identity=0.0, cycle=0.0) == (2, 6)
    assert asked(adversarial=0.0) == (6, 0)
    assert asked(recompute=True) == (8, 6)
    assert asked(cycle=0.0, contrast=1.0) == (2, 3)


def test_state_holds_the_pools_and_a_cut_file_is_refused(tmp_path):
    model = CycleGAN(SMALL)
    for _ in fit_cyclegan(model, batches(0, 5), check=False):
        pass
    file = save_state(tmp_path / "state.safetensors", model, dict(run="x"))
    again, about = load_state(file)
    assert about["run"] == "x" and again.done == 5
    for name, pool in model.pools.items():
        assert pool.count == again.pools[name].count == 5 and torch.equal(
            pool.images, again.pools[name].images
        )
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="safetensors"):
        load_state(file)


@pytest.mark.parametrize("base", [{}, dict(spectral=True)], ids=["plain", "spectral"])
def test_averages_follow_and_cost_little(base):
    model = CycleGAN(replace(SMALL, ema=0.9, **base))
    for _ in fit_cyclegan(model, batches(0, 8), check=False):
        pass
    for name, net in model.ema.items():
        apart = max(
            (a - b).abs().max().item()
            for a, b in zip(net.parameters(), model.networks[name].parameters())
        )
        assert 0 < apart < 0.05 and not any(p.requires_grad for p in net.parameters())
    with torch.no_grad():
        assert torch.isfinite(model.translator("ct2mr")(blobs(3)[1])).all()


def test_a_short_training_brings_cycle_and_identity_down():
    s = replace(SMALL, width=6, steps=60, lr=3e-3, ema=0.9, residual=True)
    rows = list(fit_cyclegan(CycleGAN(s), batches(0, 60)))

    def mean(name, part):
        return float(np.mean([r[name] for r in rows[part]]))

    for name in ("cycle_mr", "cycle_ct", "identity_mr", "identity_ct"):
        assert mean(name, slice(-20, None)) < 0.6 * mean(name, slice(0, 20)), name


def test_an_unlucky_patch_is_no_broken_loss():
    """A patch of air has no edges.

    Gradient consistency is waited for, and stops the run only when it never teaches.
    """
    s = replace(SMALL, steps=4, gradient=1.0)
    air = torch.full((1, 1, 16, 16, 16), -1.0)
    lucky = [(air, air, "air"), *batches(1, 4)]
    assert len(list(fit_cyclegan(CycleGAN(s), lucky))) == 4
    with pytest.raises(InertLoss, match="gradient_ct does not train mr2ct"):
        list(fit_cyclegan(CycleGAN(s), [(air, air, "air")] * 4))


@pytest.mark.parametrize("amp", ("none", "bf16"))
def test_quick_convolutions_change_nothing_but_rounding(amp):
    """Whole networks, quick and as torch computes them in double precision.

    In bf16 the gradients of a U-Net are rough, in torch as well (relative error .4), but finite.
    """
    for kind, n in (("resnet1", 16), ("unet_updated", 32), ("unet_old", 18)):
        torch.manual_seed(0)
        plain = generator(kind, 3, norm="instance")
        quick, x = use_fast_conv(copy.deepcopy(plain)), F.avg_pool3d(
            torch.randn(1, 1, n, n, n), 3, 1, 1
        )
        plain.double()
        answers = [plain(x.double()), run_network(quick, x, amp)]
        aim = F.avg_pool3d(torch.randn(1, 1, n, n, n), 5, 1, 2)
        for a in answers:
            F.mse_loss(a, aim.to(a.dtype)).backward()
        assert (answers[0] - answers[1]).norm() < (1e-4 if amp == "none" else 0.1) * answers[
            0
        ].norm(), kind
        exact, got = (
            torch.cat([p.grad.double().flatten() for p in net.parameters()])
            for net in (plain, quick)
        )
        assert (
            got.isfinite().all()
            and (exact - got).norm()
            < dict(none=5e-3, bf16=0.15 if kind == "resnet1" else 0.8)[amp] * exact.norm()
        ), kind
