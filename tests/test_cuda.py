"What only a card can show; each of these skips where there is none."

import pytest
import torch

from medseg.segment.losses import DiceCE
from medseg.segment.unet import UNet
from medseg.train.checkpoint import load_checkpoint, save_checkpoint
from medseg.train.distributed import launch, local_share, wrap
from medseg.train.loop import fit
from medseg.translate.settings import Settings
from medseg.translate.state import load_state, save_state
from medseg.translate.step import CycleGAN, fit_cyclegan

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card"),
]
SMALL = Settings("resnet1", 4, disc_width=4, disc_layers=1, pool=0, steps=4)


def slabs(step: int):
    dice = torch.Generator().manual_seed(step)
    x, y = torch.rand(4, 3, 32, 32, generator=dice), torch.zeros(4, 3, 32, 32, dtype=torch.int64)
    y[:, :, 8:24, 4:20] = 1
    return x + y, y, ["anna", "bert", "carl", "dora"]


def volumes(step: int):
    dice = torch.Generator().manual_seed(step)
    mr, ct = (torch.rand(2, 1, 12, 12, 12, generator=dice) * 2 - 1 for _ in range(2))
    return mr, ct, ["anna", "bert"]


def on_card(batch):
    return *(t.cuda() for t in batch[:2]), batch[2]


def made(kind: str = "both"):
    torch.manual_seed(0)
    return UNet(3, 2, "all", kind, width=8, levels=3)


@pytest.mark.parametrize("kind", ["none", "channel", "spatial", "both"])
def test_network_loss_and_weights_stay_on_the_card(kind):
    net = made(kind).cuda()
    x, y, _ = on_card(slabs(0))
    loss = DiceCE(torch.tensor([1.0, 3.0]))(net(x), y)
    loss.backward()
    assert loss.is_cuda and all(p.is_cuda and p.grad.is_cuda for p in net.parameters())


def test_a_step_on_the_card_is_near_the_step_on_the_cpu():
    "In full precision; cards add up in another order, and TF32 is not asked for."
    here, there = made(), made().cuda()
    first = [
        next(fit(net, [batch], DiceCE(), 4))
        for net, batch in ((here, slabs(0)), (there, on_card(slabs(0))))
    ]
    assert first[1]["loss"] == pytest.approx(first[0]["loss"], rel=1e-4)
    assert first[1]["gradient"] == pytest.approx(first[0]["gradient"], rel=1e-2)


def test_half_of_the_length_computes_in_half_and_loses_in_full():
    net, (x, y, _) = made().cuda(), on_card(slabs(0))
    with torch.autocast("cuda", torch.bfloat16):
        logits = net(x)
    assert logits.dtype == torch.bfloat16
    loss = DiceCE()(logits, y)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(DiceCE()(net(x), y).item(), abs=0.03)


def test_a_checkpoint_made_on_a_card_is_read_to_the_cpu(tmp_path):
    net = made().cuda()
    save_checkpoint(tmp_path / "net.safetensors", net.state_dict(), {})
    before = torch.cuda.memory_allocated()
    tensors, _ = load_checkpoint(tmp_path / "net.safetensors")
    assert {t.device.type for t in tensors.values()} == {
        "cpu"
    } and torch.cuda.memory_allocated() == before
    for name, t in net.state_dict().items():
        assert torch.equal(t.cpu(), tensors[name])


def test_a_translation_goes_on_from_a_state_that_a_card_wrote(tmp_path):
    model = CycleGAN(SMALL)
    for net in [*model.networks.values(), *model.ema.values()]:
        net.cuda()
    list(fit_cyclegan(model, (on_card(volumes(step)) for step in range(2))))
    save_state(tmp_path / "state.safetensors", model, {})
    again, _ = load_state(tmp_path / "state.safetensors")
    for name, net in again.networks.items():
        assert all(
            torch.equal(t, u.cpu())
            for t, u in zip(net.state_dict().values(), model.networks[name].state_dict().values())
        )
    assert next(iter(fit_cyclegan(again, [volumes(2)], first=2)))["step"] == 2


def trained(world):
    net = made().to(world.device)
    parts = (
        tuple(
            p.to(world.device) if torch.is_tensor(p) else p
            for p in local_share(world, *slabs(step))
        )
        for step in range(2)
    )
    rows = list(fit(wrap(world, net), parts, DiceCE(), 2))
    return [str(world.device), [r["loss"] for r in rows]]


def test_launch_gives_the_training_the_card():
    ((device, losses),) = launch(trained, 1, cpu=False)
    assert device.startswith("cuda") and all(0 < loss < 10 for loss in losses)
