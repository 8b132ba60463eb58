"""The alarm: it rings for a training that collapses and not for one that does not, does what it was
told, leaves no trace, and its limits are those of the record.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import lru_cache
from shutil import copyfile

import numpy as np
import pytest
import torch
from command import medseg
from conftest import TOP
from torch.nn import functional as F

from medseg.data.spine_cohort import make_spine_cohort
from medseg.data.scans import make_scan
from medseg.runs.folder import run_state
from medseg.collapse.alarm import (
    LIMITS,
    Monitor,
    MonitorScans,
    new_memory,
    monitor_numbers,
    fit_watched,
    monitor_step,
    output_numbers,
    generate,
    alarm_reasons,
)
from medseg.collapse.calibration import calibrate, read_trainings, alarm_quality
from medseg.collapse.causes import CAUSES, RECIPES, short_training
from medseg.translate.settings import Settings
from medseg.translate.state import load_state, save_state, state_tensors
from medseg.translate.step import CycleGAN
from medseg.io.files import read_rows
from medseg.phantoms.spine_scanner import spine_ct, spine_mr

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = Settings(
    "resnet1", 3, residual=True, disc_width=3, disc_layers=1, steps=10, pool=3, ema=0.9, lr=1e-3
)


def blobs(seed, size=12):
    x = (
        F.avg_pool3d(
            torch.randn(1, 1, *[size + 4] * 3, generator=torch.Generator().manual_seed(seed)), 5, 1
        )[0, 0].numpy()
        * 9
    )
    return np.clip(np.cos(2 * x), -1, 1), np.clip(np.tanh(x) - 0.2 * np.abs(x), -1, 1)


MR, CT = (np.stack(s) for s in zip(*(blobs(k) for k in range(5))))
PLAIN = dict(variety=(0.3, None))  # where what follows from suspicion is tested, not the limits
WATCH = MonitorScans(MR, np.stack([blobs(50 + k)[1] for k in range(3)]))


def batches(first, turn, steps=SMALL.steps):
    for step in range(first, steps):
        yield (
            *(torch.from_numpy(v[[(step + turn) % 3]])[:, None].float() for v in (MR, WATCH.train)),
            f"blobs {step}",
        )


def deaf(model, after):
    "From a step on, the generator is shown an empty volume: collapse at a known place."
    for net in {model.networks["mr2ct"], model.translator()}:
        net.register_forward_pre_hook(
            lambda net, x: (torch.zeros_like(x[0]),) if model.done >= after else None
        )
    return model


CUTS = (5, 6, 7)  # steps after which a training is put down


def watched(action="go_on", after=99, folder=None):
    """The model, the monitor and the rows of a training.

    Where the folder is to hold its states, also how many rows there were at each cut.
    """
    model = deaf(CycleGAN(SMALL), after)
    monitor = Monitor(WATCH, 2, action, folder and folder / "diverse.safetensors", PLAIN)
    rows, cuts = [], {}
    for kind, row in fit_watched(model, batches, monitor, check=False):
        rows.append((kind, row))
        if folder and kind == "train" and model.done in CUTS and model.done not in cuts:
            cuts[model.done] = len(rows)
            save_state(
                folder / f"state_{model.done}.safetensors", model, dict(monitor=monitor.memory)
            )
            if monitor.file.exists():
                copyfile(monitor.file, folder / f"diverse_{model.done}.safetensors")
    return model, monitor, rows, cuts


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trainings watched from beginning to end, each once: `watched` with its answer kept.

    Nobody changes what it hands out.
    """

    @lru_cache(None)
    def once(action="go_on", after=99):
        return watched(
            action, after, None if action == "stop" else tmp_path_factory.mktemp("watched")
        )

    return once


def panels(rows):
    return [r for kind, r in rows if kind == "panel"]


def test_rings_for_a_training_made_to_collapse_and_not_for_a_sound_one():
    at = dict(spacing=(5.0, 5.0, 5.0), extent_mm=(90.0, 100.0, 60.0))
    mr, ct, test = (
        [make_scan(f"{kind} {k}", scan(k, **at).image, kind) for k in range(first, first + 4)]
        for kind, scan, first in (
            ("MR", spine_mr, 0),
            ("CT", spine_ct, 500),
            ("MR", spine_mr, 1000),
        )
    )
    watch = MonitorScans(
        np.stack([s.unit() for s in test]), np.stack([s.unit() for s in ct]), at["spacing"]
    )
    rang = {
        name: [
            row["reasons"]
            for _, row in short_training(RECIPES[name], 3, mr, ct, watch, 10, 2)
            if row["alarm"]
        ]
        for name in ("plain", "constant")
    }
    assert not rang["plain"]
    assert len(rang["constant"]) == 1 and any("variety" in why for why in rang["constant"][0])


@pytest.mark.parametrize(
    "name, sick",
    [
        ("pairing", CT[[0] * 5]),
        ("dependence", CT[[0] * 5]),
        ("variety", CT[[0, 1, 0, 1, 0]]),
        ("table", 0.4 * MR - 0.5),
        ("nearest", WATCH.train[[0, 1, 2, 0, 1]]),
    ],
)
def test_each_number_of_the_outputs_tells_sick_from_sound(name, sick):
    "A number that were constant could not."
    sound, bad = (output_numbers(WATCH, v)[name] for v in (CT, sick))
    low, high = dict(
        pairing=(0.5, None),
        dependence=(0.1, None),
        variety=(0.5, None),
        table=(None, 0.99),
        nearest=(0.05, None),
    )[name]
    assert alarm_reasons({name: bad}, {name: (low, high)}) and not alarm_reasons(
        {name: sound}, {name: (low, high)}
    ), (sound, bad)


def test_leak_and_balance_tell_too(trained):
    model = CycleGAN(replace(SMALL, ema=0.0))
    out = generate(model, MR)
    numbers = monitor_numbers(model, WATCH, out, 0.7)
    assert (
        numbers["balance"] == 0.7
        and monitor_numbers(model, WATCH, out, None)["balance"] is None
        and numbers["leak"] < 0.1
    )

    class Hides(torch.nn.Module):
        training_part = torch.nn.Parameter(torch.zeros(1))

        def __init__(self, way):
            super().__init__()
            self.way, self.one = way, torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return self.way(x)

    model.networks |= dict(mr2ct=Hides(lambda x: 0.004 * x), ct2mr=Hides(lambda x: 250 * x))
    assert monitor_numbers(model, WATCH, out, None)["leak"] > 0.9
    rows = [r for kind, r in trained()[2] if kind == "train"]
    shares = [v for r in rows[:2] for k, v in r.items() if k.startswith("right_")]
    assert panels(trained()[2])[0]["balance"] == pytest.approx(
        np.mean(shares)
    ), "the balance is that of the steps since the last look"


def test_a_look_leaves_no_trace():
    model = CycleGAN(
        replace(SMALL, norm="batch", disc_norm="batch", spectral=True, disc_spectral=True)
    )
    monitor = Monitor(WATCH, 2)
    for _ in zip(range(3), fit_watched(model, batches, Monitor(None, 0), check=False)):
        pass
    before = {k: v.clone() for k, v in state_tensors(model).items()}
    modes = {name: net.training for name, net in model.networks.items()}
    monitor_step(monitor, model)
    after = state_tensors(model)
    assert all(torch.equal(before[k], after[k]) for k in before) and set(before) == set(after)
    assert modes == {name: net.training for name, net in model.networks.items()}


def test_go_on_stop_roll_back(trained):
    model, monitor, through, _ = trained("go_on", 6)
    rows = through
    assert model.done == SMALL.steps and [r["step"] for r in panels(rows) if r["alarm"]] == [8] == [
        a["step"] for a in monitor.memory["alarms"]
    ], "one alarm, not one a look"
    model, monitor, rows, _ = trained("stop", 6)
    assert model.done == 8 and panels(rows)[-1]["action"] == "stop"
    assert rows[:-1] == through[: len(rows) - 1], "saved states on the way leave no trace"
    model, monitor, rows, _ = trained("roll_back", 6)
    assert [a["action"] for a in monitor.memory["alarms"]] == [
        "roll_back",
        "roll_back",
        "stop",
    ] and monitor.memory["diverse"] == 4
    assert [r["step"] for kind, r in rows if kind == "train"] == [
        *range(8),
        *range(4, 8),
        *range(4, 8),
    ] and model.settings.lr_disc == SMALL.lr_disc / 4
    model, monitor, rows, _ = trained("roll_back", 0)
    assert [a["action"] for a in monitor.memory["alarms"]] == [
        "stop"
    ] and model.done == 4, "never diverse: nothing to go back to"
    _, _, rows, _ = trained()
    assert not any(r["reasons"] for r in panels(rows)), "a sound training"


def test_a_rolled_back_training_is_where_it_was_and_sees_other_patches(trained):
    model, monitor, rows, _ = trained("roll_back", 6)
    saved, _ = load_state(monitor.file)
    assert saved.done == 4
    first, second = [r for kind, r in rows if kind == "train" and r["step"] == 4][:2]
    assert second["rate_disc"] == first["rate_disc"] / 2 and first["cycle_mr"] != second["cycle_mr"]


@pytest.mark.parametrize("action", ("go_on", "roll_back"))
@pytest.mark.parametrize("cut", CUTS)
def test_put_down_and_taken_up_again(tmp_path, trained, cut, action):
    """A state saved after any step, with the monitor's memory, gives the rest of the rows, looks
    and alarms included.
    """
    _, monitor, whole, cuts = trained(action, 6)
    model, about = load_state(monitor.file.with_name(f"state_{cut}.safetensors"))
    kept = monitor.file.with_name(f"diverse_{cut}.safetensors")
    if kept.exists():
        copyfile(kept, tmp_path / "diverse.safetensors")
    rest = list(
        fit_watched(
            deaf(model, 6),
            batches,
            Monitor(WATCH, 2, action, tmp_path / "diverse.safetensors", PLAIN, about["monitor"]),
            check=False,
        )
    )
    assert rest == whole[cuts[cut] :] and len(rest) > 3


def rows_of(folder, *kinds):
    return [r for r in read_rows(folder / "rows.jsonl") if r["kind"] in kinds]


def test_the_experiment_is_stopped_by_its_alarm_and_resumes(tmp_path):
    """A training with far too large steps collapses; the run says so.

    Killed on the way, it gives the same rows.
    """
    cohort = make_spine_cohort(
        tmp_path / "spines",
        2,
        2,
        1,
        spacing_mr=(5.0, 5.0, 5.0),
        spacing_ct=(5.0, 5.0, 5.0),
        extent_mm=(60.0, 60.0, 60.0),
        workers=1,
        validation=4,
    )
    words = [
        "run",
        "translate",
        "-p",
        "manifest",
        cohort,
        "-p",
        "spacing_mm",
        5,
        "-p",
        "patch",
        12,
        "-p",
        "steps",
        24,
        "-p",
        "threads",
        1,
        "-p",
        "save_every",
        4,
        "-p",
        "alarm_every",
        3,
        "-p",
        "alarm",
        "stop",
        "-p",
        "residual",
        "true",
        "-p",
        "lr",
        0.06,
        "-p",
        "cycle",
        0,
        "-p",
        "identity",
        0,
    ]
    done = medseg(*words, "--out", "whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    looks = rows_of(tmp_path / "whole", "panel")
    assert (
        looks[-1]["action"] == "stop"
        and result["cost"]["updates"] == looks[-1]["step"] < 24
        and any("stop" in n for n in result["notes"])
    )
    assert (tmp_path / "whole" / "figures" / f"alarm_{looks[-1]['step']:06d}_seed_0.png").exists()
    running = subprocess.Popen(
        [sys.executable, "-m", "medseg", *map(str, words), "--out", "cut"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.time() + 240
    while time.time() < deadline and not (
        (tmp_path / "cut" / "rows.jsonl").exists() and len(rows_of(tmp_path / "cut", "train")) > 4
    ):
        time.sleep(0.01)
    kernels = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(running.pid)], capture_output=True, text=True
    ).stdout.split()
    for pid in [*map(int, kernels), running.pid]:
        os.kill(pid, signal.SIGKILL)
    running.wait()
    while time.time() < deadline and run_state(tmp_path / "cut") == "running":
        time.sleep(0.05)
    done = medseg("run", "translate", "--resume", "cut", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for kinds in (("train",), ("panel",), ("alarm",)):
        assert rows_of(tmp_path / "cut", *kinds) == rows_of(tmp_path / "whole", *kinds)


def test_the_limits_are_those_of_the_record():
    records = [
        (json.loads((p / "config.json").read_text())["name"], read_rows(p / "rows.jsonl"))
        for p in sorted((TOP / "log").glob("collapse-half-*"))
    ]
    first, second = (
        read_trainings([r for name, rows in records if name == f"half-{k}" for r in rows])
        for k in (0, 1)
    )
    assert (
        calibrate(
            first,
            next(
                r
                for name, rows in records
                if name == "half-0"
                for r in rows
                if r["kind"] == "measured"
            ),
        )
        == LIMITS
    )
    assert not {(t["recipe"], t["seed"]) for t in first} & {
        (t["recipe"], t["seed"]) for t in second
    }
    assert (
        sum(t["collapsed"] is False for t in first + second)
        >= 12
        <= sum(t["collapsed"] is True for t in first + second)
    )
    assert len({t["cause"] for t in second if t["collapsed"]}) >= 4 and set(CAUSES) >= {
        t["cause"] for t in first if t["cause"]
    }
    found = alarm_quality(second)
    assert found["recall"] >= 0.9 and found["false_alarms"] <= 0.1


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="one of"):
        Monitor(WATCH, action="hope")
    with pytest.raises(ValueError, match="at least 4"):
        MonitorScans(MR[:2], WATCH.train)
    assert json.loads(json.dumps(new_memory())) == new_memory()
