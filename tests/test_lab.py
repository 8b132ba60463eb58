"""A real JupyterLab in a real browser.

Scans are drawn, sliders move them, labels lie on the liver, and nothing leaves this machine.
"""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import warm
from driver import PATIENCE, away, chromium, jupyterlab, open_notebook, pixels, run_all, write_book
from scipy import ndimage

from medseg.view.assets import assets_state, make_assets
from medseg.view.lab import explore_notebook
from medseg.io.files import InputError
from medseg.phantoms.scanner import abdomen
from medseg.phantoms.anatomy import ABDOMEN
from medseg.io.read import read_volume
from medseg.io.resample import resample
from medseg.io.volume import Volume, reorient
from medseg.io.write import write_labels, write_volume

pytestmark = pytest.mark.browser
COARSE = (6.0, 6.0, 6.0)  # mm; WebGL in software is slow
LOAD = """from medseg.io.read import read_volume
from medseg.view.viewer import view
from medseg.view.webgl import itkwidget, niivue
ct, liver = read_volume(r'{0}/a.nii.gz'), read_volume(r'{0}/a_seg.nii.gz', 'labels')
made = view(ct, liver, names=dict(liver=1), window='soft tissue', backend={1!r}, n=4)
print('backend', made.backend, made.note)
"""
BUSY = """def busy(seconds=5):
    "As on a busy machine, itkwidgets begins to listen for the picture when it is drawn already."
    import asyncio
    from itkwidgets.viewer import ViewerRPC
    shot = ViewerRPC.create_screenshot
    async def late(self): await asyncio.sleep(seconds); await shot(self)
    ViewerRPC.create_screenshot = late
"""
NOTEBOOKS = {
    "niivue.ipynb": "made if made.backend == 'static' else niivue(made.panels, only=2)",
    "itkwidgets.ipynb": (
        BUSY + "made if made.backend == 'static' else (busy(), itkwidget(made.panels, 'ZPlane'))[1]"
    ),
}


def scan_and_liver() -> tuple[Volume, Volume]:
    """A real CT with its liver, of MEDSEG_DATA, or a phantom without it.

    Only the slices that hold liver.
    """
    real = Path(os.environ.get("MEDSEG_DATA", "/nowhere")) / "ct_abdomen" / "tsA"
    if real.is_dir():
        ct, labels, liver = (
            resample(read_volume(real / "ct.nii.gz"), COARSE),
            resample(read_volume(real / "seg_ts117.nii.gz", "labels"), COARSE, labels=True),
            5,
        )
    else:
        phantom = abdomen(1, spacing=COARSE)
        ct, labels, liver = phantom.ct, phantom.labels, ABDOMEN["liver"]
    ct, labels = reorient(ct, "RAS"), reorient(labels, "RAS")
    ks = np.flatnonzero((labels.voxels == liver).any((0, 1)))
    part, affine = slice(ks[0], ks[-1] + 1), ct.affine.copy()
    affine[:3, 3] += affine[:3, 2] * ks[0]
    return Volume(ct.voxels[..., part], affine), Volume(
        (labels.voxels[..., part] == liver).astype(np.uint8), affine
    )


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    "A folder with scans, and a notebook for each viewer beside the one that `medseg lab` makes."
    top = tmp_path_factory.mktemp("lab")
    scans, place = top / "scans", top / "runs" / "lab"
    ct, liver = scan_and_liver()
    write_volume(scans / "a.nii.gz", ct)
    write_labels(scans / "a_seg.nii.gz", liver)
    write_volume(
        scans / "b.nii.gz", Volume(ct.voxels[:, :, ::2], ct.affine @ np.diag([1, 1, 2, 1.0]))
    )
    explore_notebook(scans, place)
    for name, show in NOTEBOOKS.items():
        write_book(
            place / name, LOAD.format(scans, Path(name).stem) + show, "print('the cell after', 6*7)"
        )
    return top


@pytest.fixture(scope="module")
def assets():
    "Whether itkwidgets can draw; its front end is fetched where npm and its registry are in reach."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("npm_config_fetch_timeout", "60000")
        try:
            return make_assets()
        except (InputError, subprocess.TimeoutExpired) as e:
            return assets_state() | dict(problem=str(e))


@pytest.fixture(scope="module")
def tab(room, assets):
    """A function that opens a notebook in a new page, runs it and hands back the page.

    `tab.asked` are all addresses that the browser asked for.
    """
    try:
        with chromium() as browser, jupyterlab(room, room / "scans") as url:
            context, pages = browser.new_context(viewport=dict(width=1300, height=1000)), []

            def tab(name=""):
                while pages:
                    pages.pop().close()
                pages.append(context.new_page())
                open_notebook(pages[0], url, name)
                run_all(pages[0])
                return pages[0]

            tab.asked = []
            context.on("request", lambda r: tab.asked.append(r.url))
            yield tab
    except LookupError as e:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"not run: {e}")


def where(colour: np.ndarray, body: np.ndarray) -> tuple:
    """How large a label is beside the body, how far from its middle, in its own widths, and whether
    it is on the left. The first two stay the same if a picture is scaled, turned or sheared.
    """
    if colour.sum() < 20:
        return 0.0, 0.0, False
    points, middle = np.argwhere(body), np.argwhere(colour).mean(0)
    off = middle - points.mean(0)
    return (
        colour.sum() / len(points),
        float(np.sqrt(off @ np.linalg.inv(np.cov(points.T)) @ off)),
        bool(off[1] < 0),
    )


def seen(picture: np.ndarray, channel: int = 1) -> tuple:
    """`where`, from pixels.

    What has a colour is label, what is bright is body, and what is of the colour of the corner
    and touches the rim is neither.
    """
    others = [c for c in range(3) if c != channel]
    parts, _ = ndimage.label(np.abs(picture - picture[0, 0]).max(-1) < 4)
    rim = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    bright = (picture.min(-1) > 60) & ~np.isin(parts, rim[rim > 0])
    colour = picture[..., channel] > picture[..., others].max(-1) + 25
    # without letters and thin lines
    return where(*(ndimage.binary_opening(x, np.ones((3, 3))) for x in (colour, bright | colour)))


@pytest.fixture(scope="module")
def truth(room) -> tuple:
    "`where`, from voxels: the middle slice, the patient's right on the left."
    ct, liver = (
        reorient(read_volume(room / "scans" / name, kind), "LPS").voxels
        for name, kind in (("a.nii.gz", "image"), ("a_seg.nii.gz", "labels"))
    )
    k = ct.shape[2] // 2
    return where(liver[..., k].T > 0, ct[..., k].T > -160 + 400 * 60 / 255)


def drag(page, handle, by: int):
    "Take something with the mouse and let it go `by` pixels to the right."
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by, y, steps=4)
    page.mouse.up()
    page.mouse.move(1, 1)


def until(page, look, good):
    "What `look` sees as soon as it is `good` and stays the same."
    old, end = None, time.monotonic() + PATIENCE / 1000
    while time.monotonic() < end:
        new = look()
        if old is not None and np.array_equal(old, new) and good(new):
            return new
        old = new
        page.wait_for_timeout(300)
    page.screenshot(path="not_seen.png")
    raise AssertionError(f"not seen within {PATIENCE//1000} s")


def check(page, name: str, look, move, truth: tuple, channel: int = 1):
    "The label is drawn, it lies on the liver, and `move` changes the picture."
    before = until(page, look, lambda p: seen(p, channel)[0] > truth[0] / 4)
    page.screenshot(path=f"{name}.png")
    share, far, left = seen(before, channel)
    assert left == truth[2] and abs(share / truth[0] - 1) < 0.3 and abs(far - truth[1]) < 0.2, (
        (share, far, left),
        truth,
    )
    move()
    until(
        page,
        look,
        lambda p: p.shape == before.shape and (np.abs(p - before).max(-1) > 20).mean() > 0.02,
    )
    page.screenshot(path=f"{name}_moved.png")


def said(page) -> str:
    return " ".join(page.locator(".jp-OutputArea").all_inner_texts())


@pytest.fixture(autouse=True)
def pictures_go_to(room, monkeypatch):
    monkeypatch.chdir(room)


def test_explore(tab, room, truth):
    """The ready notebook: a slider moves the slice, labels lie on the liver, a click opens another
    scan.
    """
    page = tab()
    image = page.locator(".jp-OutputArea img.widget-image").nth(1)
    page.get_by_label("window").select_option("soft tissue")
    image.scroll_into_view_if_needed()
    bar = page.locator(".widget-slider", has=page.get_by_text("slice", exact=True))
    check(
        page,
        "explore",
        lambda: pixels(image),
        lambda: drag(page, bar.locator(".noUi-handle"), 60),
        truth,
    )
    page.locator(".medseg-list select").select_option(index=1)
    middle = read_volume(room / "scans" / "b.nii.gz").shape[2] // 2
    bar.locator(".widget-readout", has_text=re.compile(rf"^{middle}$")).wait_for()
    until(page, lambda: pixels(image), lambda p: seen(p)[0] == 0)  # it has no labels


def test_niivue(tab, truth):
    "niivue draws an axial slice with its label, and a turn of the wheel changes it."
    pytest.importorskip("ipyniivue", reason="not run: ipyniivue is not installed")
    page = tab("niivue.ipynb")
    assert "backend niivue" in said(page)
    canvas = page.locator(".jp-OutputArea canvas").first
    canvas.wait_for()
    canvas.scroll_into_view_if_needed()

    def turn():
        canvas.hover()
        for _ in range(4):
            page.mouse.wheel(0, 120)

    check(page, "niivue", lambda: pixels(canvas), turn, truth)


def test_itkwidgets(tab, assets, truth):
    """itkwidgets draws a slice with its label from what this machine serves, its slider moves the
    slice, and the notebook goes on.
    """
    if not assets["ready"]:
        pytest.skip(f"not run: itkwidgets has no front end: {assets['problem']}")
    page = tab("itkwidgets.ipynb")
    assert "backend itkwidgets" in said(page) and "the cell after 42" in said(page)
    window = page.locator("iframe[src*='itk-vtk-viewer']").first
    window.scroll_into_view_if_needed()

    def look():  # the middle, without buttons
        p = pixels(window)
        (h, w), (y, x) = p.shape[:2], (0.2, 0.2)
        return p[int(y * h) : int((1 - y) * h), int(x * w) : int((1 - x) * w)]

    slider = page.frame_locator("iframe[src*='itk-vtk-viewer']").first.locator(
        "input[type=range][id$=zSlice]"
    )
    check(page, "itkwidgets", look, lambda: drag(page, slider, 150), truth, channel=0)


def test_no_request_leaves_this_machine(tab):
    "Of all that the tests above asked for."
    if not tab.asked:
        tab()
    assert len(tab.asked) > 50 and not away(tab.asked)


@pytest.mark.parametrize("name", ["explore_scans.ipynb", *NOTEBOOKS])
def test_nobody_looking(name, room, tmp_path):
    "The same notebooks end by themselves under papermill, with a still and no widget."
    import papermill
    from medseg.runs.execute import _kernel

    with warm.kernels():
        papermill.execute_notebook(
            str(room / "runs" / "lab" / name),
            str(tmp_path / "done.ipynb"),
            kernel_name="python3",
            progress_bar=False,
            execution_timeout=300,
            start_timeout=600,
            kernel_manager_class=_kernel(str(tmp_path), "ipc", {}, []),
            cwd=str(room),
        )
    outputs = [
        o
        for c in json.loads((tmp_path / "done.ipynb").read_text())["cells"]
        for o in c.get("outputs", [])
    ]
    kinds = set().union(*(o["data"] for o in outputs if "data" in o))
    assert {"image/png", "text/html"} <= kinds and not [k for k in kinds if "widget" in k], kinds
