"""Several processes train what one would.

Same gradients, one writer, a whole checkpoint after a kill, plain words when it cannot be.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from medseg.segment.losses import DiceCE
from medseg.segment.unet import UNet
from medseg.train.checkpoint import load_checkpoint, save_checkpoint
from medseg.train.distributed import (
    RankError,
    World,
    unwrap,
    check_identical,
    find_world,
    launch,
    mean_gradients,
    on_main_process,
    broadcast_weights,
    local_share,
    wrap,
)
from medseg.train.loop import fit
from medseg.translate.generators import generator
from medseg.translate.settings import Settings
from medseg.translate.state import load_state, save_state
from medseg.translate.step import CycleGAN, fit_cyclegan

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = Settings(
    "resnet1",
    4,
    disc_width=4,
    disc_layers=1,
    pool=0,
    gradient=1.0,
    spectral=True,
    disc_spectral=True,
    steps=4,
)


# ---- what the processes run: defined here, so that they can import it


def batch(step: int, n: int = 2):
    dice = torch.Generator().manual_seed(step)
    mr, ct = (
        torch.rand(n, 1, 12, 12, 12, generator=dice, dtype=torch.float64) * 2 - 1 for _ in range(2)
    )
    return mr, ct, ["anna", "bert"]


def translation(world: World, folder: str, seed: int = 0) -> dict:
    "Three steps of a CycleGAN in float64; gradients of the last, and the state on disk."
    model = CycleGAN(replace(SMALL, seed=seed))
    for net in [*model.networks.values(), *model.ema.values()]:
        net.double()
    broadcast_weights(world, *model.networks.values(), *model.ema.values())
    found = {}

    def before_update(nets):
        mean_gradients(world, [p for net in nets.values() for p in net.parameters()])
        for name, net in nets.items():
            found[name] = [p.grad.flatten().tolist() for p in net.parameters()]

    model.before_update = before_update
    for step in range(3):
        model.step(*local_share(world, *batch(step))[:2])
        for nets in (model.networks, model.ema):
            for net in nets.values():
                check_identical(world, net.state_dict())
    on_main_process(
        world,
        lambda: save_state(
            f"{folder}/state_{world.size}.safetensors", model, dict(rank=world.rank)
        ),
    )
    return found


def slabs(step: int):
    """Four slabs whose first two hold nearly all of class 2, so that the halves of the batch are as
    unlike as real ones.
    """
    dice = torch.Generator().manual_seed(step)
    x, y = torch.rand(4, 3, 16, 16, generator=dice, dtype=torch.float64), torch.zeros(
        4, 3, 16, 16, dtype=torch.int64
    )
    y[:, :, 4:12, 2:9], y[:2, :, 6:9, 4:7], y[2:, 1, 6, 4] = 1, 2, 2
    return x + y, y, ["anna", "bert", "carl", "dora"]


def segmentation(world: World, whole: bool = True) -> list:
    """The loop, network and loss of the segmentation, clipping and class weights included.

    `whole`: sums over all processes.
    """
    torch.manual_seed(world.rank if world.size > 1 else 0)
    net = UNet(3, 3, "all", "both", width=4, levels=2).double()
    broadcast_weights(world, net)  # all begin with those of rank 0, whatever they had
    used = wrap(world, net)
    loss = DiceCE(torch.tensor([1.0, 2.0, 5.0]))
    parts = (local_share(world, *slabs(step)) for step in range(4))
    shared = world if whole else World()
    rows = list(fit(net if whole else used, parts, loss, 4, lr=0.01, world=shared))
    check_identical(world, unwrap(used).state_dict())
    return [
        [p.flatten().tolist() for p in net.parameters()],
        [r["gradient"] for r in rows],
        [r["loss"] for r in rows],
    ]


def spectral(world: World) -> dict:
    "Power iterations in a wrapped network: its weights and vectors after two steps."
    torch.manual_seed(world.rank)
    net = generator("resnet1", 2, spectral=True).double()
    used = wrap(world, net)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for mr, *_ in (local_share(world, *batch(i)) for i in range(2)):
        opt.zero_grad()
        used(mr).square().mean().backward()
        opt.step()
    return {name: t.flatten().tolist() for name, t in unwrap(used).state_dict().items()}


def work(world: World, folder: str):
    return dict(
        translation=translation(world, folder, seed=world.rank),
        segmentation=segmentation(world),
        halves=segmentation(world, whole=False),
        spectral=spectral(world),
    )


def everyone_writes(world: World, folder: str):
    """What the lineage did: every rank writes the same name.

    The writer is all or nothing, so the file is somebody's whole file.
    """
    tensors = dict(a=torch.full((1000,), float(world.rank)))
    for _ in range(20):
        save_checkpoint(f"{folder}/crowd.safetensors", tensors, dict(rank=world.rank))


def ends_in(world: World, how: str, path: str):
    net = nn.Linear(4, 4)
    for step in range(50):
        on_main_process(world, lambda: save_checkpoint(path, net.state_dict(), dict(step=step)))
        if step != 3 or world.rank != 1:
            continue
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "raise":
            local_share(world, torch.zeros(1))
        if how == "exit":
            sys.exit(3)


def waits(world: World, folder: str):
    (Path(folder) / f"pid_{world.rank}").write_text(str(os.getpid()))
    time.sleep(120)


# ---- tests


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("ranks"))
    torch.set_num_threads(1)
    return launch(work, 1, (folder,))[0], launch(work, 2, (folder,)), folder


def apart(a, b):
    return max(
        (torch.tensor(p).double() - torch.tensor(q).double()).abs().max().item()
        for p, q in zip(a, b, strict=True)
    )


def test_translation_gradients_are_those_of_one_process(runs):
    one, ranks, _ = runs
    for name, grads in one["translation"].items():
        assert any(any(g) for g in grads), name
        for rank in ranks:
            assert apart(rank["translation"][name], grads) < 1e-10, name
    assert set(one["translation"]) == {"mr2ct", "ct2mr", "disc_ct", "disc_mr"}


def test_one_state_on_disk_and_it_goes_on(runs):
    *_, folder = runs
    (_, one), (tensors, two) = (load_checkpoint(f"{folder}/state_{n}.safetensors") for n in (1, 2))
    assert two["rank"] == 0 == one["rank"] and two["step"] == 3
    assert all(t.device.type == "cpu" for t in tensors.values()), "loading goes to the CPU first"
    assert any(name.endswith("_u") for name in tensors), "power iterations are in the state"
    model, _ = load_state(f"{folder}/state_2.safetensors")
    rows = list(
        fit_cyclegan(model, ((mr.float(), ct.float(), who) for mr, ct, who in [batch(3)]), first=3)
    )
    assert rows[0]["step"] == 3


def test_the_segmentation_trains_the_same_network_with_its_own_loss(runs):
    """Dice is a fraction of sums over the batch and weighted cross-entropy another.

    Both are those of one process, and so are clipped gradients and weights.
    """
    (weights, lengths, losses), others = runs[0]["segmentation"], [
        r["segmentation"] for r in runs[1]
    ]
    assert max(lengths) > 1, "the clipping is at work"
    for other in others:
        assert apart(other[0], weights) < 1e-9
        assert other[1] == pytest.approx(lengths, rel=1e-9) and other[2] == pytest.approx(
            losses, rel=1e-9
        )


def test_halves_with_a_dice_of_their_own_train_another_network(runs):
    """What `sum_over_processes` is for.

    Without it the mean gradient of the ranks is not that of one process.
    """
    (weights, lengths, _), other = runs[0]["halves"], runs[1][0]["halves"]
    assert apart(other[0], weights) > 1e-4 and abs(other[1][0] - lengths[0]) > 1e-4 * lengths[0]


def test_power_iterations_are_those_of_one_process(runs):
    one, (first, second) = runs[0]["spectral"], (r["spectral"] for r in runs[1])
    assert first == second and any(name.endswith("_u") for name in one)
    for name, values in one.items():
        assert values == pytest.approx(first[name], abs=1e-12), name


def test_every_rank_writing_leaves_a_whole_file(tmp_path):
    launch(everyone_writes, 2, (str(tmp_path),))
    tensors, about = load_checkpoint(tmp_path / "crowd.safetensors")
    assert (tensors["a"] == about["rank"]).all() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "how, told",
    [
        ("kill", "rank 1 of 2: was ended by SIGKILL"),
        ("exit", "rank 1 of 2: ended with code 3"),
        (
            "raise",
            (
                "rank 1 of 2: ValueError: a batch of 1 cannot be shared equally by 2 processes: use"
                " a batch of 2"
            ),
        ),
    ],
)
def test_a_rank_that_ends_is_named_and_the_checkpoint_is_whole(tmp_path, how, told):
    began = time.time()
    with pytest.raises(RankError, match=told) as error:
        launch(ends_in, 2, (how, str(tmp_path / "net.safetensors")))
    assert time.time() - began < 100, "nobody waits for ever"
    assert (
        how != "raise" or "in local_share" in error.value.__notes__[0]
    ), "the trace of the other process is kept"
    assert load_checkpoint(tmp_path / "net.safetensors")[1]["step"] in (3, 4)
    assert [f.name for f in tmp_path.iterdir() if not f.name.startswith(".")] == ["net.safetensors"]


def test_ranks_do_not_outlive_who_started_them(tmp_path):
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\nimport test_launch\nfrom"
        " medseg.train.distributed import launch\nif __name__ == '__main__':"
        f" launch(test_launch.waits, 2, ({str(tmp_path)!r},))"
    )
    (tmp_path / "start.py").write_text(code)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "start.py")])
    try:
        for _ in range(900):
            if len(files := list(tmp_path.glob("pid_*"))) == 2 and all(
                f.read_text() for f in files
            ):
                break
            assert parent.poll() is None
            time.sleep(0.1)
        pids = [int(f.read_text()) for f in files]
        assert len(pids) == 2
    finally:
        parent.kill()
        parent.wait()
    for pid in pids:
        for _ in range(200):
            if not alive(pid):
                break
            time.sleep(0.05)
        assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_alone_nothing_is_started():
    assert launch(lambda world: [world.rank, world.size], 1) == [[0, 1]]
    world = find_world()
    net = nn.Linear(1, 1)
    assert wrap(world, net) is net and on_main_process(world, lambda: 7) == 7
    broadcast_weights(world, net)
    check_identical(world, net.state_dict())
    mean_gradients(world, net.parameters())


def test_data_parallel_changes_only_the_names():
    net = nn.Linear(2, 2)
    assert list(nn.DataParallel(net).state_dict()) == ["module.weight", "module.bias"]
    assert unwrap(nn.DataParallel(nn.DataParallel(net))) is net


def test_a_missing_package_is_named(monkeypatch):
    import importlib.util

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"accelerate: package: found not installed; needs the extra scale"
    ):
        find_world()
