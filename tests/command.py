"A command as a user types it, asked in this process: a new one would spend seconds on loading torch before each answer; its kernels come from warm.py. test_cli.py starts real ones."
import contextlib
import io
import sys
import traceback
import warnings
from types import SimpleNamespace
from unittest.mock import patch

import warm

from medseg.cli import main


def medseg(*words, cwd=".") -> SimpleNamespace:
    "Exit status, stdout and stderr of `medseg WORDS`, typed in the folder `cwd`."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), patch.object(sys, "argv", ["medseg", *map(str, words)]), warm.kernels(), warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main(); status = 0
        except SystemExit as e: status = e.code or 0
        except Exception: traceback.print_exc(); status = 1   # as --debug lets it through
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())
