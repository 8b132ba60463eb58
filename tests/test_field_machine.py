"""What medseg asks of a machine.

Names that are not UTF-8, folders for sockets, shares without locks, terminals that know only
ASCII, signals, memory.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import command
import nibabel as nib
import nbformat
import numpy as np
import pytest
import warm

from medseg.runs.execute import RunFailed, run_experiment
from medseg.runs.folder import claim_folder, take_lock, release_lock, run_state
from medseg.io.files import atomic, write_text

MEDSEG = [sys.executable, "-m", "medseg"]
NAME = os.fsdecode(b"sch\xe4del")  # Latin-1, as a Windows zip unpacks it
TOY = (
    "from medseg.runs.folder import start_run, finish_run\nrun = start_run('toy', dict(name=name),"
    " out)\n"
)
SHARE = """
import errno, fcntl, os, stat
real = os.fsync
def fsync(fd):
    place = fd if isinstance(fd, int) else fd.fileno()
    if stat.S_ISDIR(os.fstat(place).st_mode): raise OSError(errno.EINVAL, "Invalid argument")
    return real(fd)
def chmod(path, mode, **words):
    raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
def flock(fd, how): raise OSError(errno.ENOSYS, "Function not implemented")
os.fsync, os.chmod, fcntl.flock = fsync, chmod, flock
"""  # a CIFS, FUSE or Lustre mount, as Python sees it


def scan(path, seed=0):
    "A small CT."
    path.parent.mkdir(parents=True, exist_ok=True)
    hu = np.random.default_rng(seed).normal(0, 300, (16, 16, 6)).clip(-1000, 2000).astype(np.int16)
    with atomic(path) as new:
        nib.save(nib.Nifti1Image(hu, np.diag([4.0, 4.0, 5.0, 1.0])), new)
    return path


def toy(folder, body):
    "An experiment of two cells."
    cells = [
        nbformat.v4.new_code_cell('name = "toy"\nout = ""', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(TOY + body),
    ]
    nb = nbformat.v4.new_notebook(
        cells=cells,
        metadata={
            "kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}
        },
    )
    nbformat.write(nb, folder / "toy.ipynb")
    return folder / "toy.ipynb"


def files_of(folder):
    return {p: p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def test_names_that_are_not_utf8(tmp_path):
    top = tmp_path / NAME
    path = scan(top / f"{NAME}.nii.gz")
    for words in (
        ("survey", top, "--json", "--html", tmp_path / "page.html"),
        ("check", top, "--json"),
        ("related", top, "--json", "--cache", tmp_path / "cache"),
    ):
        done = command.medseg(*words)
        assert done.returncode == 0 and done.stderr == "", done
        told = json.dumps(json.loads(done.stdout), ensure_ascii=False)
        assert (
            NAME in told or words[0] == "related"
        ), "a program gets the name as the file system has it"
        done.stdout.encode("ascii")
    assert (
        "sch\\xe4del" in command.medseg("survey", NAME, cwd=tmp_path).stdout
        and (tmp_path / "page.html").read_text()
    )
    error = command.medseg("evaluate", path, top / "none.nii.gz").stderr
    assert "sch\\xe4del" in error and len(error.splitlines()) == 1
    done = command.medseg("survey", ".", "--json", cwd=top)
    assert done.returncode == 0 and len(json.loads(done.stdout)["volumes"]) == 1


def test_a_terminal_that_knows_only_ascii(tmp_path):
    "A real process: the encoding of its streams is set when Python starts."
    scan(tmp_path / f"{NAME}.nii.gz"), scan(tmp_path / "läsion – 3 mm.nii.gz", 1)
    for encoding in ("ascii", "latin-1"):
        env = os.environ | dict(PYTHONIOENCODING=encoding, COLUMNS="20", NO_COLOR="1", TERM="dumb")
        done = subprocess.run(
            [*MEDSEG, "survey", tmp_path], capture_output=True, env=env, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0 and done.stderr == b"", done
        assert "2 volumes" in done.stdout.decode(encoding)


def test_a_reader_that_goes_away_and_a_full_disk(tmp_path):
    scan(tmp_path / "a.nii.gz")
    words = [*MEDSEG, "survey", str(tmp_path), "--json"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 1
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
        assert (
            done.returncode == 1
            and len(done.stderr.splitlines()) == 1
            and "No space left" in done.stderr
        )


def test_shares_that_know_no_fsync_chmod_or_locks(tmp_path):
    for number in (errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        with mock.patch("os.fsync", side_effect=OSError(number, "no")), mock.patch(
            "os.chmod", side_effect=OSError(number, "no")
        ):
            write_text(tmp_path / "a.txt", "whole")
    for number in (errno.ENOSPC, errno.EIO):
        with mock.patch("os.fsync", side_effect=OSError(number, "bad")), pytest.raises(
            OSError, match="bad"
        ):
            write_text(tmp_path / "a.txt", "half")
    assert (tmp_path / "a.txt").read_text() == "whole" and len(list(tmp_path.iterdir())) == 1
    with mock.patch("fcntl.flock", side_effect=OSError(errno.ENOSYS, "no")):
        folder, lock = claim_folder("toy", tmp_path / "run")
        assert run_state(folder) == "running"
        with pytest.raises(ValueError, match="a process at work on"):
            take_lock(folder)
        record = json.loads((folder / "run.lock").read_text())
        for dead in (dict(pid=2**22), dict(began="7")):  # gone; its number is another's by now
            (folder / "run.lock").write_text(json.dumps(record | dead))
            assert run_state(folder) == "lost"
        (folder / "run.lock").write_text(json.dumps(record | dict(host="node7")))
        assert run_state(folder) == "running", "nobody can tell from here"
        (folder / "run.lock").write_text("")  # as a run leaves it
        release_lock(take_lock(folder))


def test_a_hostile_machine_trains_all_the_same(cohort, tmp_path):
    """One real run: no home, TMPDIR too long for a socket, a share without fsync, chmod and locks,
    an ASCII log, a folder whose name is not UTF-8.
    """
    here, long = tmp_path / NAME, tmp_path / ("t" * 50) / ("u" * 50)
    for folder in (here, long, tmp_path / "site"):
        folder.mkdir(parents=True)
    (tmp_path / "site" / "sitecustomize.py").write_text(SHARE)
    env = {k: v for k, v in os.environ.items() if k != "HOME"} | dict(
        TMPDIR=str(long), PYTHONIOENCODING="ascii", PYTHONPATH=str(tmp_path / "site")
    )
    words = [
        "run",
        "segment",
        "-p",
        "steps",
        "1",
        "-p",
        "crop",
        "32",
        "-p",
        "width",
        "4",
        "-p",
        "levels",
        "2",
        "-p",
        "inplane_mm",
        "8",
        "-p",
        "manifest",
        str(cohort),
    ]
    done = subprocess.run(
        [*MEDSEG, *words, "--out", "run"],
        capture_output=True,
        text=True,
        cwd=here,
        env=env,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0 and run_state(here / "run") == "finished", done
    assert set(long.iterdir()) <= set(
        long.glob("torchinductor_*")
    ), "nothing of ours is left where temporary files go"


def test_a_fork_server_needs_a_socket_and_processes_start_without_one(tmp_path):
    long = tmp_path / ("t" * 60) / ("u" * 60)
    long.mkdir(parents=True)
    code = (
        "from medseg.io.many import start_method\nif __name__ == '__main__':\n with"
        " start_method().Pool(2) as pool: print(pool.map(abs, [-1, 2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | dict(TMPDIR=str(long)),
    )
    assert done.returncode == 0 and done.stdout.strip() == "[1, 2]", done


def test_runs_of_one_second_have_names_of_their_own(tmp_path):
    code = (
        "from medseg.runs.folder import claim_folder, time; time.strftime = lambda *_: 'now';"
        " print(claim_folder('demo')[0])"
    )
    six = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        for _ in range(4)
    ]
    names = [p.communicate()[0].strip() for p in six]
    assert sorted(names) == ["runs/demo-now", *(f"runs/demo-now-{k}" for k in (1, 2, 3))]


def test_who_does_not_hold_a_folder_touches_nothing(tmp_path):
    folder, lock = claim_folder("toy", tmp_path / "run")
    write_text(folder / "config.json", '{"experiment": "toy", "name": "first"}')
    book, before = toy(tmp_path, "finish_run(run, {}, [], {}, 'phantom')"), files_of(folder)
    with pytest.raises(ValueError, match="a new name"):
        run_experiment(book, {}, folder)
    done = command.medseg("run", "translate", "--resume", folder)
    assert (
        done.returncode == 1
        and "a process at work" in done.stderr
        and len(done.stderr.splitlines()) == 1
    ), done
    done = command.medseg("compare", folder, "--html", folder / "result.json")
    assert done.returncode == 1
    assert files_of(folder) == before and run_state(folder) == "running"
    release_lock(lock)


def test_a_folder_deleted_in_mid_run_is_not_made_again(tmp_path):
    book = toy(tmp_path, "import shutil; shutil.rmtree(out)\nrun.row('train', dict(step=0))")
    with warm.kernels(), pytest.raises(RunFailed, match="leave the folder of a run alone"):
        run_experiment(book, {}, tmp_path / "gone")
    assert not (tmp_path / "gone").exists()
    other = toy(
        tmp_path,
        "import shutil; shutil.rmtree(out)\nstart_run('toy', dict(name='other'), out)\n1/0",
    )
    with warm.kernels(), pytest.raises(RunFailed):
        run_experiment(other, {}, tmp_path / "taken")
    assert {p.name for p in (tmp_path / "taken").iterdir()} == {
        "config.json",
        "environment.json",
        "run.lock",
    }, "it is another run's by now"


@pytest.mark.parametrize(
    "body, told",
    (
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
        ("import os; os._exit(3)", "a kernel ended"),
        ("bytearray(1 << 60)", "needs more memory"),
        (
            (
                "raise RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate"
                " 9 bytes')"
            ),
            "needs more memory",
        ),
    ),
)
def test_a_kernel_that_ran_out_of_memory_is_not_lost(tmp_path, body, told):
    real = "9)" in body  # its exit status is that of a child, and kernels of warm.py are none
    with mock.patch.dict(os.environ), (
        warm.kernels() if not real else mock.MagicMock()
    ), pytest.raises(RunFailed, match=told):
        run_experiment(toy(tmp_path, body), {}, tmp_path / "run")
    assert (
        run_state(tmp_path / "run") == "failed"
        and json.loads((tmp_path / "run" / "result.json").read_text())["notes"]
    )


def children(pid):
    rows = [
        line.split()
        for line in subprocess.run(
            ["ps", "-eo", "pid,ppid"], capture_output=True, text=True
        ).stdout.splitlines()[1:]
    ]
    return [int(mine) for mine, above in rows if int(above) == pid]


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGHUP))
def test_a_signal_is_one_line_whatever_is_at_work(tmp_path, number):
    "Ctrl-C reaches every process of a terminal's group; workers say nothing, and none is left."
    for k in range(2):
        scan(tmp_path / f"{k}.nii.gz", k)
    words = [
        *MEDSEG,
        "check",
        *[str(tmp_path / f"{k % 2}.nii.gz") for k in range(4000)],
        "--workers",
        "2",
    ]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 240
    while len(children(process.pid)) < 3 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(1)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=240)
    assert (
        process.returncode == 128 + number
        and len(err.splitlines()) == 1
        and signal.Signals(number).name in err
    ), (out[-500:], err)
