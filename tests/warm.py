"""Kernels for the commands that tests ask in their own process (command.py), and for the notebooks
of test_lab.py and test_scale.py: forked from a process that has loaded torch and the like, on which
each would spend six seconds.
Nothing of the book is loaded before. Commands that are processes of their own, and the plain
papermill of test_experiments.py, start their kernels as users do.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from contextlib import nullcontext
from functools import cache
from unittest.mock import patch

LOADED = (
    "torch._dynamo",
    "torch._inductor.config",
    "scipy.interpolate",
    "scipy.ndimage",
    "scipy.spatial",
    "nibabel",
    "pydicom",
    "matplotlib.pyplot",
    "ipykernel.kernelapp",
)
# a kernel sets the first before it loads matplotlib, `medseg run` the second
INLINE = dict(MPLBACKEND="module://matplotlib_inline.backend_inline", OMP_WAIT_POLICY="PASSIVE")


class Kernel:
    "What jupyter_client asks of a process, for one that is not our child."

    stdin = stdout = stderr = None

    def __init__(self, pid: int):
        self.pid, self._end = pid, os.pidfd_open(pid)

    def __del__(self):
        os.close(self._end)

    def wait(self, timeout: float | None = None):
        return 0 if select.select([self._end], [], [], timeout)[0] else None

    def poll(self):
        return self.wait(0)

    def send_signal(self, number: int):
        signal.pidfd_send_signal(self._end, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


@cache
def server() -> subprocess.Popen:
    "One for this process; it ends when this process does."
    return subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | INLINE,
    )


def launch(words: list[str], env: dict, cwd=None, **_) -> Kernel:
    "In place of `jupyter_client.launcher.launch_kernel`."
    assert words[1:3] == ["-m", "ipykernel_launcher"], words
    print(
        json.dumps(dict(words=words[2:], env=env, cwd=str(cwd or os.getcwd()))),
        file=server().stdin,
        flush=True,
    )
    return Kernel(int(server().stdout.readline()))


def kernels():
    "For a with-block. On other systems than Linux kernels start as they do."
    return (
        patch("jupyter_client.provisioning.local_provisioner.launch_kernel", launch)
        if hasattr(os, "pidfd_open")
        else nullcontext()
    )


def serve() -> dict | None:
    "Forks for every request. Returns in the forks, with the request, and at the end, with nothing."
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries them
    for line in sys.stdin:
        if not (pid := os.fork()):
            os.setpgid(0, 0)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return json.loads(line)
        try:
            os.setpgid(pid, pid)  # before anybody asks for the group to which signals go
        except OSError:
            pass
        print(pid, flush=True)


if __name__ == "__main__":
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()  # what is loaded stays; no fork needs to look through it
    if asked := serve():
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.environ.clear()
        os.environ.update(asked["env"], JPY_PARENT_PID=str(os.getppid()))
        os.chdir(asked["cwd"])
        sys.path[0] = asked["cwd"]
        sys.argv = asked["words"]
        runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
