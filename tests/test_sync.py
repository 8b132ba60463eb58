"Exporting the notebooks again changes nothing, and each experiment and its twin say the same."

import shutil
import subprocess
import sys

import jupytext
from conftest import TOP

# the front doors of the package and its parts
HAND = ("__init__.py", "__main__.py")


def test_export_in_sync(tmp_path):
    "medseg/ is what nbs/ says: an export in a copy of the tree gives the same bytes."
    copy = tmp_path / "medseg"
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("nbs", "medseg"):
        shutil.copytree(TOP / name, copy / name, ignore=ignore)
    for name in ("settings.ini", "pyproject.toml", "setup.py", "README.md"):
        shutil.copy(TOP / name, copy / name)
    shutil.rmtree(copy / "medseg")
    (copy / "medseg").mkdir()
    shutil.copy(TOP / "medseg" / "__init__.py", copy / "medseg")
    subprocess.run(
        [
            sys.executable,
            "-c",
            (
                "from nbdev.export import nb_export; from nbdev.doclinks import nbdev_export;"
                " nbdev_export()"
            ),
        ],
        cwd=copy,
        check=True,
    )
    kept = {p.relative_to(TOP) for p in (TOP / "medseg").rglob("*.py")}
    # twins of notebooks, tested below; and what is written by hand
    kept = {p for p in kept if p.parts[:2] != ("medseg", "experiments") and p.name not in HAND}
    made = {p.relative_to(copy) for p in (copy / "medseg").rglob("*.py") if p.name not in HAND}
    assert (
        kept == made
    ), f"in medseg/ but not exported: {kept - made}; exported but missing: {made - kept}"
    stale = [str(p) for p in sorted(kept) if (TOP / p).read_bytes() != (copy / p).read_bytes()]
    assert not stale, f"run `make prep`; out of step with nbs/: {stale}"


def test_experiments_and_twins_in_step():
    notebooks = sorted((TOP / "nbs" / "experiments").glob("*.ipynb"))
    assert notebooks, "no experiment found"
    twins = {p.stem for p in (TOP / "medseg" / "experiments").glob("[!_]*.py")}
    assert {p.stem for p in notebooks} == twins
    for path in notebooks:
        twin = jupytext.read(TOP / "medseg" / "experiments" / f"{path.stem}.py")
        cells = [
            (c.cell_type, c.source, c.metadata.get("tags", [])) for c in jupytext.read(path).cells
        ]
        assert cells == [
            (c.cell_type, c.source, c.metadata.get("tags", [])) for c in twin.cells
        ], f"{path.name}: run `make prep`"
