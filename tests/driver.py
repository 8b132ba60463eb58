"""JupyterLab as `medseg lab` starts it, and a browser that opens its notebooks.

For tests and for measuring.
"""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from medseg.view.lab import lab_command

TOP = Path(__file__).parents[1]
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
PATIENCE = 300_000  # ms; a machine may be busy with other tests
LOCAL = ("data", "blob", "about")


def write_book(path: Path, *texts: str) -> Path:
    "A notebook of code cells."
    cells = [
        dict(
            cell_type="code",
            id=f"cell{i}",
            metadata={},
            source=text,
            outputs=[],
            execution_count=None,
        )
        for i, text in enumerate(texts)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            dict(
                cells=cells,
                nbformat=4,
                nbformat_minor=5,
                metadata=dict(
                    kernelspec=dict(name="python3", display_name="python3", language="python")
                ),
            )
        )
    )
    return path


@contextlib.contextmanager
def jupyterlab(room: Path, scans: Path):
    """`medseg lab SCANS`, called in the folder `room`; its settings are kept there too.

    The address that it would open.
    """
    with contextlib.chdir(room):
        program, environment = lab_command(scans, port=18888 + os.getpid() % 1000, browser=False)
    environment |= dict(
        PYTHONPATH=os.pathsep.join([str(TOP), os.environ.get("PYTHONPATH", "")]),
        JUPYTER_CONFIG_DIR=str(room / "config"),
        JUPYTER_RUNTIME_DIR=str(room / "runtime"),
        IPYTHONDIR=str(room / "ipython"),
    )
    environment.pop("MEDSEG_VIEWER", None)
    log = room / "server.log"
    with open(log, "w") as said:
        lab = subprocess.Popen(program, env=environment, stdout=said, stderr=said, cwd=room)
    try:
        until = time.monotonic() + PATIENCE / 1000
        while not (
            found := re.search(r"http://127\.0\.0\.1:\d+/lab\S*\?token=\w+", log.read_text())
        ):
            assert lab.poll() is None and time.monotonic() < until, log.read_text()[-2000:]
            time.sleep(0.2)
        yield found[0]
    finally:
        lab.terminate()
        try:
            lab.wait(30)
        except subprocess.TimeoutExpired:
            lab.kill()


@contextlib.contextmanager
def chromium():
    "Debian's browser, or playwright's own; LookupError if none can be started."
    from playwright import sync_api

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_api.sync_playwright() as p:
        try:
            browser = p.chromium.launch(
                args=ARGS, **(dict(executable_path=program) if program else {})
            )
        except sync_api.Error as e:
            raise LookupError(f"no browser: {e.message.splitlines()[0]}") from e
        try:
            yield browser
        finally:
            browser.close()


def open_notebook(page, url: str, name: str = ""):
    """Open what the server would open, or another notebook beside it, and wait until its kernel
    listens.
    """
    page.set_default_timeout(PATIENCE)
    told = urlsplit(url)
    page.goto(f"{told.scheme}://{told.netloc}/doc/tree/{name}?{told.query}&reset" if name else url)
    page.wait_for_function("""() => {
        // idle is also what a notebook without a kernel calls itself, and a run would then ask
        // which kernel to take
        const name = document.querySelector('.jp-Toolbar-kernelName');
        const state = document.querySelector('.jp-Notebook-ExecutionIndicator');
        return name && state && name.innerText.includes('Python') && state.dataset.status == 'idle';
    }""")


def run_all(page):
    "Run all cells and wait for the last."
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator("[data-command='runmenu:run-all']").click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].every(p =>"
        " /\\[\\d+\\]/.test(p.textContent))"
    )


def pixels(locator) -> np.ndarray:
    "What is to be seen at a place of the page, (rows, columns, 3)."
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(int)


def away(asked: list) -> list:
    "Addresses that are not of this machine."
    return [
        u for u in asked if urlsplit(u).scheme not in LOCAL and urlsplit(u).hostname != "127.0.0.1"
    ]
