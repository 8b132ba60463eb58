"""How long a reader waits, measured in a real browser; not a test, since other work on the machine
would decide it.

`python tests/lab_speed.py` makes phantoms, opens JupyterLab, and prints one line of JSON a
measurement:
`first`: from the click that runs a notebook with `explore` on 200 scans, in a fresh kernel, to its
first picture and to the slider's picture;
`move`: from a move of the mouse that holds the slider of a 512 x 512 x 600 scan to the next frame
after the changed picture has been loaded.
"""

import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
from driver import chromium, jupyterlab, open_notebook, run_all, write_book

from medseg.phantoms.scanner import abdomen
from medseg.io.volume import Volume
from medseg.io.write import write_volume

FIRST = """() => {
    window.marks = {};
    const started = () => { if (!marks.still) marks.run = performance.now(); };
    window.addEventListener('pointerup', started, true);
    const drawn = i => i && i.complete && i.naturalWidth > 0;
    const look = () => {
        const now = performance.now();
        const still = document.querySelector('.jp-OutputArea img');
        const all = document.querySelectorAll('.jp-OutputArea img.widget-image');
        if (!marks.still && drawn(still)) marks.still = now;
        if (!marks.slider && all.length == 2 && [...all].every(drawn)) marks.slider = now;
        else requestAnimationFrame(look);
    };
    look();
}"""
MOVE = """() => {
    window.moves = [];
    let moved = null;
    window.addEventListener('pointermove', () => { moved = performance.now(); }, true);
    const drawnAgain = () => moves.push(performance.now() - moved);
    const picture = document.querySelector('.jp-OutputArea img.widget-image');
    picture.addEventListener('load', () => requestAnimationFrame(drawnAgain));
}"""


def say(what: str, **figures):
    print(json.dumps(dict(what=what, **figures, load=round(os.getloadavg()[0], 1))), flush=True)


def figures(ms: list) -> dict:
    return dict(
        n=len(ms),
        median_ms=round(float(np.median(ms))),
        p90_ms=round(float(np.quantile(ms, 0.9))),
        most_ms=round(max(ms)),
    )


def books(room: Path, times: int) -> Path:
    "The scans and the notebooks."
    scans, place = room / "scans", room / "runs" / "lab"
    ct = abdomen(1, spacing=(1.5, 1.5, 5.0)).ct
    write_volume(scans / "scan_000.nii.gz", ct)
    for i in range(1, 200):
        os.link(scans / "scan_000.nii.gz", scans / f"scan_{i:03d}.nii.gz")
    for i in range(times):
        write_book(
            place / f"first{i}.ipynb",
            f"from medseg.data.explore import explore\nexplore({str(scans)!r})",
        )
    steps = [-(-n // m) for n, m in zip((512, 512, 600), ct.shape)]
    large = (
        ct.voxels.repeat(steps[0], 0)[:512]
        .repeat(steps[1], 1)[:, :512]
        .repeat(steps[2], 2)[:, :, :600]
    )
    noise = np.random.default_rng(0).integers(-15, 16, (512, 512, 7), np.int16)
    for z in range(0, 600, 7):
        large[:, :, z : z + 7] += noise[:, :, : 600 - z]
    assert large.shape == (512, 512, 600) and large.dtype == np.int16
    write_volume(room / "large.nii", Volume(large, np.diag([0.8, 0.8, 1.0, 1.0])))
    write_book(
        place / "move.ipynb",
        "from medseg.io.read import read_volume\nfrom medseg.view.browse import Browser\nfrom"
        " medseg.view.side import panels\nscan ="
        f" read_volume({str(room/'large.nii')!r})\nprint(scan.shape, scan.voxels.dtype)",
        "Browser(panels(scan, window='soft tissue')).widget",
    )
    return scans


def first(page):
    "From run to picture, ms."
    page.evaluate(FIRST)
    run_all(page)
    page.wait_for_function("() => marks.slider")
    marks = page.evaluate("() => marks")
    return marks["still"] - marks["run"], marks["slider"] - marks["run"]


def move(page, direction: str, times: int) -> list:
    "From the hand to the picture, ms, one value a move."
    page.get_by_role("button", name=direction).click()
    page.wait_for_timeout(1000)
    page.evaluate("() => { moves.length = 0; }")
    handle = page.locator(".widget-slider", has=page.get_by_text("slice", exact=True)).locator(
        ".noUi-handle"
    )
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for i in range(1, times + 1):
        page.mouse.move(x + 2 * (10 - abs(10 - i % 20)) + 1, y)  # there and back
        page.wait_for_function(f"() => moves.length >= {i}")
        page.wait_for_timeout(50)
    page.mouse.up()
    return page.evaluate("() => moves")


def main(times: int = 5, moves: int = 40):
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        room = Path(folder)
        scans = books(room, times)
        say(
            "machine",
            cores=os.cpu_count(),
            system=platform.system(),
            python=platform.python_version(),
            browser=browser.version,
        )
        with jupyterlab(room, scans) as url:

            def opened(name):
                page = browser.new_page(viewport=dict(width=1300, height=1000))
                open_notebook(page, url, name)
                return page

            both = []
            for i in range(times):
                page = opened(f"first{i}.ipynb")
                both.append(first(page))
                page.close()
            say("first picture", **figures([a for a, _ in both]))
            say("slider's picture", **figures([b for _, b in both]))
            page = opened("move.ipynb")
            run_all(page)
            page.locator(".jp-OutputArea img.widget-image").wait_for()
            page.evaluate(MOVE)
            for direction in ("axial", "coronal", "sagittal"):
                say(f"move, {direction}", **figures(move(page, direction, moves)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
