"""A command as a user types it, asked in this process.

A new one would spend seconds on loading torch before each answer; its kernels come from warm.py.
test_cli.py starts real ones.
"""

import contextlib
import io
import json
import sys
import traceback
import warnings
from types import SimpleNamespace
from unittest.mock import patch

import warm

from medseg.cli.entry import main


def medseg(*words, cwd=".") -> SimpleNamespace:
    "Exit status, stdout and stderr of `medseg WORDS`, typed in the folder `cwd`."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), patch.object(
        sys, "argv", ["medseg", *map(str, words)]
    ), warm.kernels(), warnings.catch_warnings(), contextlib.redirect_stdout(
        out
    ), contextlib.redirect_stderr(
        err
    ):
        try:
            main()
            status = 0
        except SystemExit as e:
            status = e.code or 0
        except Exception:
            traceback.print_exc()
            status = 1  # as --debug lets it through
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


def typed(**parameters) -> list[str]:
    "Parameters of a run as words of its command."
    return [word for name, value in parameters.items() for word in ("-p", name, str(value))]


def experiment(name: str, cwd, out: str = "run", **parameters) -> dict:
    "What `medseg run NAME --json` tells of a run that went well, left in `cwd/out`."
    done = medseg("run", name, *typed(**parameters), "--out", out, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
