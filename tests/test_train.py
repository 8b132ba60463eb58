"""A training that is killed, stopped, shared or cut into parts ends as the unbroken one.

All on phantoms; what is compared are rows and weights.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from command import medseg
from conftest import TOP

from medseg.data.cohort import make_cohort
from medseg.io.files import InputError
from medseg.runs.folder import run_state
from medseg.segment.losses import DiceCE
from medseg.segment.settings import SegmentSettings
from medseg.segment.train import Rows, train
from medseg.segment.unet import UNet
from medseg.train.checkpoint import load_checkpoint
from medseg.train.distributed import World, launch, local_share, wrap
from medseg.train.loop import batch_gradients

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    cohort = make_cohort(folder, 4, 1, inplane_mm=10.0, spacings=(6.0, 10.0), workers=1)
    return SegmentSettings(
        str(cohort),
        inplane_mm=10.0,
        width=4,
        levels=2,
        steps=24,
        crop=32,
        batch=4,
        validate_every=8,
        save_every=4,
        ema=0.9,
        threads=1,
        device="cpu",
    )


def into(folder: Path) -> Rows:
    folder.mkdir(parents=True, exist_ok=True)
    return Rows(folder)


def losses(folder: Path) -> list:
    rows = map(json.loads, (folder / "rows.jsonl").read_text().splitlines())
    return [(r["step"], r["loss"]) for r in rows if r["kind"] == "train"]


def weights(folder: Path, name: str = "last") -> dict:
    return load_checkpoint(folder / f"{name}.safetensors")[0]


@pytest.fixture(scope="module")
def unbroken(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    train(small, into(folder))
    return folder


# ---- gradients


def slabs():
    "Eight slabs, nearly all of class 2 in the first, so that parts are as unlike as real ones."
    dice = torch.Generator().manual_seed(0)
    x = torch.rand(8, 3, 16, 16, generator=dice, dtype=torch.float64)
    y = torch.zeros(8, 3, 16, 16, dtype=torch.int64)
    y[:, :, 4:12, 2:9], y[:2, :, 6:9, 4:7], y[5, 1, 6, 4] = 1, 2, 2
    return x + y, y


def gradients(world: World, parts: int) -> list:
    torch.manual_seed(0)
    net = UNet(3, 3, "all", "both", width=4, levels=2).double()
    x, y = local_share(world, *slabs())
    loss = DiceCE(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
    cut = list(zip(x.tensor_split(parts), y.tensor_split(parts)))
    batch_gradients(wrap(world, net), cut, loss, world)
    return torch.cat([p.grad.flatten() for p in net.parameters()]).tolist()


def test_gradients_do_not_depend_on_how_a_batch_is_cut():
    whole = torch.tensor(gradients(World(), 1), dtype=torch.float64)
    x, y = slabs()
    torch.manual_seed(0)
    net = UNet(3, 3, "all", "both", width=4, levels=2).double()
    DiceCE(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))(net(x), y).backward()
    plain = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert (whole - plain).abs().max() < 1e-12 and whole.abs().max() > 1e-3
    found = [gradients(World(), 4), *launch(gradients, 2, (1,)), *launch(gradients, 2, (2,))]
    for other in found:
        assert (torch.tensor(other, dtype=torch.float64) - whole).abs().max() < 1e-6 * 1e-3


def test_a_mean_of_halves_is_another_gradient():
    "What the sums are for: the check above would find it."
    x, y = slabs()
    torch.manual_seed(0)
    net = UNet(3, 3, "all", "both", width=4, levels=2).double()
    loss = DiceCE()
    whole = torch.autograd.grad(loss(net(x), y), net.head.weight)[0]
    halves = (loss(net(x[:4]), y[:4]) + loss(net(x[4:]), y[4:])) / 2
    assert (torch.autograd.grad(halves, net.head.weight)[0] - whole).abs().max() > 1e-5


# ---- several processes, accumulation, workers


def test_two_processes_end_with_the_weights_of_one(small, unbroken, tmp_path):
    train(replace(small, processes=2), into(tmp_path / "two"))
    one, two = weights(unbroken), weights(tmp_path / "two")
    assert max((one[k] - two[k]).abs().max().item() for k in one) < 1e-4
    assert [s for s, _ in losses(tmp_path / "two")] == list(range(24))


def test_workers_change_nothing(small, unbroken, tmp_path):
    train(replace(small, workers=2), into(tmp_path))
    assert losses(tmp_path) == losses(unbroken)


# ---- kills

KILLS = int(os.environ.get("MEDSEG_KILLS", 2))  # 40 were tried by hand
CHILD = """
import json, sys
from medseg.segment.settings import SegmentSettings
from medseg.segment.train import Rows, train
if __name__ == "__main__":
    train(SegmentSettings(**json.loads(sys.argv[1])), Rows(sys.argv[2]), resume=True)
"""


def start(settings, folder):
    "A training in a process group of its own."
    return subprocess.Popen(
        [sys.executable, str(folder / "child.py"), json.dumps(asdict(settings)), str(folder)],
        cwd=TOP,
        start_new_session=True,
        stderr=subprocess.PIPE,
    )


def steps_done(folder: Path) -> int:
    path = folder / "rows.jsonl"
    return path.read_text().count('"train"') if path.exists() else 0


def killed_until_done(settings, folder: Path, kills: int, seed: int) -> int:
    "Kill the training at random rows until it has been killed often enough; then let it end."
    dice, count = random.Random(seed), 0
    (folder / "child.py").write_text(CHILD)
    while count < kills:
        process = start(settings, folder)
        last, more = steps_done(folder), dice.randint(1, 9)
        while process.poll() is None and abs(steps_done(folder) - last) < more:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        count += 1
    process = start(settings, folder)
    assert process.wait(300) == 0, process.stderr.read().decode()[-800:]
    return count


@pytest.mark.parametrize("how", [dict(workers=2), dict(processes=2)])
def test_killed_at_random_moments_it_ends_as_the_unbroken_one(small, how, tmp_path):
    settings = replace(small, steps=40, save_every=3, **how)
    train(settings, into(tmp_path / "whole"))
    (tmp_path / "killed").mkdir()
    kills = killed_until_done(settings, tmp_path / "killed", KILLS, seed=1)
    assert kills == KILLS
    for name in ("last", "model"):
        a, b = weights(tmp_path / "whole", name), weights(tmp_path / "killed", name)
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


# ---- signals, extension, refusals


def test_a_finished_run_is_extended_by_a_course_of_its_own(small, tmp_path):
    words = ["-p", "manifest", small.manifest, "-p", "steps", "6", "-p", "inplane_mm", "10"]
    assert medseg("run", "segment", *words, "--out", "run", cwd=tmp_path).returncode == 0
    before = losses(tmp_path / "run")
    again = medseg("run", "segment", "--resume", "run", cwd=tmp_path)
    assert again.returncode == 1 and "or an extension" in again.stderr
    done = medseg("run", "segment", "--resume", "run", "--extend", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    after = losses(tmp_path / "run")
    assert after[:6] == before and [s for s, _ in after] == list(range(10))


def test_another_training_is_not_gone_on_with(small, unbroken, tmp_path):
    longer = replace(small, extend="4")
    for other in (replace(longer, lr=0.01), replace(longer, seed=1), replace(longer, depth=1)):
        with pytest.raises(InputError, match="settings: found other settings"):
            train(other, Rows(unbroken), resume=True)


@pytest.mark.parametrize(
    "asked, told",
    [
        (dict(processes=3), "batch must be a multiple of processes"),
        (dict(precision="fp16"), "precision: found fp16 on a CPU"),
        (dict(device="tpu"), "device: found tpu"),
        (dict(folds=2, fold=7), "fold"),
        (dict(folds=99), "folds: found 99"),
        (dict(guard="pray"), "guard must be one of"),
        (dict(schedule="linear"), "schedule must be one of"),
        (dict(class_weights="1"), "class_weights must be 2 numbers"),
    ],
)
def test_what_cannot_hold_is_refused_before_anything_is_made(small, asked, told, tmp_path):
    with pytest.raises((ValueError, InputError), match=told):
        train(replace(small, **asked), into(tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_refusal_is_one_line(tmp_path):
    done = medseg("run", "segment", "-p", "device", "tpu", "--out", "run", cwd=tmp_path)
    assert done.returncode == 1 and "device: found tpu" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


# ---- two nodes


def test_two_nodes_make_one_record(small, unbroken, tmp_path):
    given = {k: v for k, v in asdict(small).items() if k != "manifest"}
    lines = "".join(f"{k}: {json.dumps(v)}\n" for k, v in given.items())
    (tmp_path / "small.yaml").write_text(f"manifest: {small.manifest}\n{lines}")
    port = str(20000 + os.getpid() % 20000)
    nodes = []
    for rank in range(2):
        words = ["--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1"]
        words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
        words += ["--rdzv-id", "both", "-m", "medseg", "run", "segment", "-f", "small.yaml"]
        nodes.append(
            subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *words, "--out", "run"],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    for node in nodes:
        _, err = node.communicate(timeout=300)
        assert node.returncode == 0, err.decode()[-800:]
    assert run_state(tmp_path / "run") == "finished"
    one, two = losses(unbroken), losses(tmp_path / "run")
    assert [s for s, _ in two] == [s for s, _ in one]
    assert max(abs(a - b) for (_, a), (_, b) in zip(one, two)) < 1e-4
