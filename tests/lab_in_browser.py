"A real JupyterLab in a real browser: scans are drawn, sliders move them, labels lie on their organs, and nothing leaves this machine.

Not collected by `make test` yet: run it by name, `pytest tests/lab_in_browser.py`. Seen to pass: niivue. The others have not passed: a dialog of JupyterLab comes between.
"
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
import pytest
from conftest import TOP
from PIL import Image

from medseg.log.assets import assets_state
from medseg.log.lab import explore_notebook, lab_command
from medseg.volumes.phantom import ABDOMEN, abdomen
from medseg.volumes.resample import resample
from medseg.volumes.read import read_volume
from medseg.volumes.volume import Volume
from medseg.volumes.write import write_labels, write_volume

pytestmark = pytest.mark.browser
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
LIVER = "liver"


def scan_and_labels() -> tuple[Volume, Volume]:
    "A real CT with its liver, of MEDSEG_DATA; the phantom without it. Coarse, for WebGL in software is slow."
    real = Path(os.environ.get("MEDSEG_DATA", "/nowhere"))/"ct_abdomen"/"tsA"
    if real.is_dir(): ct, labels, liver = read_volume(real/"ct.nii.gz"), read_volume(real/"seg_ts117.nii.gz", "labels"), 5
    else: p = abdomen(1, spacing=(5., 5., 5.)); ct, labels, liver = p.ct, p.labels, ABDOMEN["liver"]
    labels = Volume((labels.voxels == liver).astype(np.uint8), labels.affine)
    return resample(ct, (6., 6., 6.)), resample(labels, (6., 6., 6.), labels=True)


def cell(text: str, name: str) -> dict: return dict(cell_type="code", id=name, metadata={}, source=text, outputs=[], execution_count=None)


def write_book(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(cells=[cell(t, f"cell{i}") for i, t in enumerate(texts)], nbformat=4, nbformat_minor=5,
                                    metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")))))
    return path


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    "A folder with scans and one notebook a viewer."
    top = tmp_path_factory.mktemp("lab")
    ct, liver = scan_and_labels()
    write_volume(top/"scans"/"a.nii.gz", ct); write_labels(top/"scans"/"a_seg.nii.gz", liver)
    write_volume(top/"scans"/"b.nii.gz", Volume(ct.voxels[:, :, ::2], ct.affine @ np.diag([1, 1, 2, 1.])))
    explore_notebook(top/"scans", top)
    load = "from medseg.volumes.read import read_volume\nct, liver = read_volume('scans/a.nii.gz'), read_volume('scans/a_seg.nii.gz', 'labels')"
    write_book(top/"niivue.ipynb", load + "\nfrom medseg.volumes.side import panels\nfrom medseg.volumes.webgl import niivue\nniivue(panels(ct, liver, names={'liver': 1}), only=2)",
               "from medseg.volumes.view import view\nmade = view([ct, ct], [liver, None], n=3, pixels=64); print('backend', made.backend, made.note)")
    write_book(top/"itk.ipynb", load + "\nfrom medseg.volumes.browse import choose\nprint('backend', *choose('itkwidgets'))\nfrom medseg.volumes.side import panels\nfrom medseg.volumes.webgl import itkwidget\nv = itkwidget(panels(ct, liver, names={'liver': 1}), 'ZPlane')",
               "print('the cell after', 6*7)")
    return top


@pytest.fixture(scope="module")
def server(room):
    "JupyterLab as `medseg lab` starts it."
    program, environment = lab_command(room/"scans", port=18888 + os.getpid() % 1000, browser=False)
    program = [re.sub(r"(root_dir=).*", rf"\g<1>{room}", a) for a in program]
    said = open(room/"server.log", "w+")
    lab = subprocess.Popen(program, env=environment | dict(PYTHONPATH=os.pathsep.join([str(TOP), os.environ.get("PYTHONPATH", "")])), stdout=said, stderr=said, cwd=room)
    url, until = None, time.monotonic() + 120
    while not url and time.monotonic() < until:
        time.sleep(.3)
        if found := re.search(r"http://127\.0\.0\.1:\d+/lab\S*\?token=\w+", (room/"server.log").read_text()): url = found[0]
    assert url, (room/"server.log").read_text()[-2000:]
    yield urlsplit(url)
    lab.terminate()
    try: lab.wait(20)
    except subprocess.TimeoutExpired: lab.kill()


@pytest.fixture(scope="module")
def page(server):
    "A page of a browser that writes down whom it asks."
    from playwright import sync_api
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_api.sync_playwright() as p:
        try: browser = p.chromium.launch(args=ARGS, **(dict(executable_path=chromium) if chromium else {}))
        except sync_api.Error as e:
            if os.environ.get("CI") == "true": raise
            pytest.skip(f"not run, no browser: {e.message.splitlines()[0]}")
        page = browser.new_page(viewport=dict(width=1300, height=1000))
        page.asked = []
        page.on("request", lambda r: page.asked.append(r.url))
        yield page
        browser.close()


def run_all(page, server, name: str, seconds: int = 120):
    "Open a notebook alone, run it, and wait until the kernel has nothing to do."
    page.goto(f"{server.scheme}://{server.netloc}/doc/tree/{name}?{server.query}&reset")
    page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").wait_for(timeout=seconds*1000)
    for _ in range(8):   # a click that comes before the kernel listens is lost
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.locator("[data-command='runmenu:run-all']").click()
        page.wait_for_timeout(2500)
        if page.locator(".jp-CodeCell .jp-InputArea-prompt").first.inner_text() != "[ ]:": break
    page.wait_for_function("[...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].every(p => /\\[\\d+\\]/.test(p.textContent))", timeout=seconds*1000)


def pixels(locator) -> np.ndarray: return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(int)


def middle_of_green(picture: np.ndarray) -> tuple:
    "Where the label's colour is, as fractions from left and from top, and how much of the picture it takes."
    r, g, b = picture[..., 0], picture[..., 1], picture[..., 2]
    hit = (g > r + 25) & (g > b + 25)
    ys, xs = np.nonzero(hit)
    return (xs.mean()/picture.shape[1], ys.mean()/picture.shape[0], hit.mean()) if len(xs) else (0, 0, 0)


def test_explore(page, server, room):
    "The ready notebook: the still is there, a slider moves the slice, a click opens another scan, labels lie on the liver."
    run_all(page, server, "explore_scans.ipynb")
    image = page.locator(".jp-OutputArea img.widget-image, .jp-OutputArea .widget-image").nth(1)
    image.wait_for(timeout=30_000); image.scroll_into_view_if_needed()
    before = pixels(image)
    slider = page.locator(".widget-slider .noUi-handle:visible").nth(4)
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"]/2, box["y"] + box["height"]/2); page.mouse.down(); page.mouse.move(box["x"] + 40, box["y"] + 5, steps=4); page.mouse.up()
    page.wait_for_timeout(1500)
    after = pixels(image)
    page.screenshot(path=room/"explore.png")
    assert before.shape == after.shape and (np.abs(before - after).max(-1) > 20).mean() > .02
    x, y, much = middle_of_green(before)
    assert much > .01 and x < .5, (x, y, much)


def test_niivue(page, server, room):
    "niivue draws one axial view with the labels on the right side, and a turn of the wheel changes it; `view` chooses it by itself."
    pytest.importorskip("ipyniivue", reason="not run: ipyniivue is not installed")
    run_all(page, server, "niivue.ipynb")
    canvas = page.locator(".jp-OutputArea canvas").first
    canvas.wait_for(timeout=60_000); canvas.scroll_into_view_if_needed()
    for _ in range(40):
        before = pixels(canvas)
        if middle_of_green(before)[2] > .002: break
        page.wait_for_timeout(500)
    x, y, much = middle_of_green(before)
    assert much > .002 and x < .5, ("the liver is on the left of the picture", x, y, much)
    box = canvas.bounding_box(); page.mouse.move(box["x"] + box["width"]/2, box["y"] + box["height"]/2)
    for _ in range(4): page.mouse.wheel(0, 120)
    page.wait_for_timeout(1500)
    page.screenshot(path=room/"niivue.png")
    assert (np.abs(pixels(canvas) - before).max(-1) > 20).mean() > .01
    assert "backend niivue" in page.locator(".jp-OutputArea").all_inner_texts()[-1] or "backend niivue" in " ".join(page.locator(".jp-OutputArea").all_inner_texts())


def test_itkwidgets(page, server, room):
    "itkwidgets draws a slice with its label from local assets, and the notebook goes on after it."
    if not assets_state()["ready"]: pytest.skip("not run: itkwidgets needs `medseg viewer-assets`")
    run_all(page, server, "itk.ipynb")
    frame = page.frame_locator("iframe[src*='itk-vtk-viewer']").first
    canvas = frame.locator("canvas").first
    canvas.wait_for(timeout=90_000)
    window = page.locator("iframe[src*='itk-vtk-viewer']").first; window.scroll_into_view_if_needed()
    for _ in range(60):
        picture = pixels(window)
        if picture.std() > 15: break
        page.wait_for_timeout(500)
    page.screenshot(path=room/"itk.png")
    assert picture.std() > 15, "a slice is drawn"
    said = " ".join(page.locator(".jp-OutputArea").all_inner_texts())
    assert "backend itkwidgets" in said and "the cell after 42" in said


def test_no_request_leaves_this_machine(page):
    "Of all that the tests above asked for."
    assert len(page.asked) > 50
    assert not [u for u in page.asked if urlsplit(u).scheme not in ("data", "blob", "about") and urlsplit(u).hostname != "127.0.0.1"]


@pytest.mark.parametrize("name", ["explore_scans", "niivue"])
def test_nobody_looking(name, room, tmp_path):
    "The same notebooks end by themselves under papermill, with a still and no widget. The one that calls itkwidgets by name is for a browser only."
    import papermill
    from medseg.log.execute import _kernel
    papermill.execute_notebook(str(room/f"{name}.ipynb"), str(tmp_path/"done.ipynb"), kernel_name="python3", progress_bar=False, execution_timeout=120, start_timeout=600, kernel_manager_class=_kernel(str(tmp_path)), cwd=str(room))
    data = [o["data"] for c in json.loads((tmp_path/"done.ipynb").read_text())["cells"] for o in c["outputs"] if "data" in o]
    assert any("figure" in "".join(d.get("text/html", "")) for d in data) or "backend static" in (tmp_path/"done.ipynb").read_text()
