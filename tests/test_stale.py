"Chapters that cannot rot: none is stale, and a changed function makes exactly its users stale."

import ast
import json
import shutil
import subprocess
import sys
from collections import defaultdict

import pytest
from conftest import TOP

from tools.stale import FILE, file_digest, notebooks, read_digests, stale
from tools.uses import chapter_code, chapter_uses, read_package

# Who uses three functions, found by reading: their own chapter, chapters that call them, chapters
# that call what calls them.
USERS = {
    "medseg.translate.scores.otsu_bone": [
        "08_translate/18_scores.ipynb",
        "08_translate/19_baselines.ipynb",
        "10_bone/03_surface.ipynb",
        "10_bone/04_parts.ipynb",
        "11_runs/16_paired_comparison.ipynb",
    ],
    "medseg.segment.unet.split_classes": [
        "07_segment/02_unet.ipynb",
        "07_segment/05_predict.ipynb",
        "07_segment/07_settings.ipynb",
        "07_segment/08_train.ipynb",
        "07_segment/09_planner.ipynb",
        "11_runs/19_plan.ipynb",
        "12_cli/04_segment.ipynb",
        "12_cli/05_translate.ipynb",
        "12_cli/11_entry.ipynb",
    ],
    "medseg.translate.image_pool.pool_state": [
        "08_translate/10_image_pool.ipynb",
        "08_translate/16_state.ipynb",
        "09_collapse/11_alarm.ipynb",
        "09_collapse/12_causes.ipynb",
    ],
}


@pytest.fixture(scope="module")
def found():
    return stale(TOP)


@pytest.fixture(scope="module")
def package():
    return read_package(TOP / "medseg")


def test_no_chapter_is_stale(found):
    assert not found, "run `python -m tools.stale --write`:\n" + "\n".join(
        f"{c}: {', '.join(why[:5])}" for c, why in found.items()
    )


def test_every_chapter_is_written_down():
    "What has a notebook has a record."
    assert sorted(read_digests(TOP)["chapters"]) == notebooks(TOP)
    for path in (TOP / "nbs/experiments").glob("*.ipynb"):
        assert not [
            c for c in json.loads(path.read_text())["cells"] if c.get("outputs")
        ], f"{path.name}: an experiment keeps its outputs in its runs"


def change(text, function):
    "The source with one more statement in the body of `function`."
    (node,) = [
        n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == function
    ]
    lines = text.splitlines(True)
    lines.insert(node.body[0].end_lineno, "    changed = 1\n")
    return "".join(lines)


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """The project with three functions changed, in the notebooks and in the package.

    And one commented.
    """
    top = tmp_path_factory.mktemp("project")
    for name in ("nbs", "medseg"):
        shutil.copytree(
            TOP / name,
            top / name,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"),
        )
    for name in ("log", "settings.ini", "_quarto.yml"):
        (top / name).symlink_to(TOP / name)
    for full, users in USERS.items():
        module, _, function = full.rpartition(".")
        path = top / (module.replace(".", "/") + ".py")
        path.write_text(change(path.read_text(), function))
        nb = json.loads((top / "nbs" / users[0]).read_text())
        cell = next(c for c in nb["cells"] if f"def {function}(" in "".join(c["source"]))
        cell["source"] = change("".join(cell["source"]), function)
        (top / "nbs" / users[0]).write_text(json.dumps(nb))
    quiet = top / "medseg/io/files.py"
    quiet.write_text(
        quiet.read_text().replace(
            '    """A short SHA-256', '    # a comment\n    """Another explanation: a short SHA-256'
        )
    )
    return top


def test_three_functions_make_exactly_their_users_stale(changed, found):
    after, named = stale(changed), defaultdict(list)
    for chapter, why in after.items():
        for full in USERS:
            own = chapter == USERS[full][0] and "its own cells" in why
            if full in why or own:
                named[full].append(chapter)
    assert dict(named) == USERS
    others = set(after) - {c for users in USERS.values() for c in users}
    assert others <= set(found), "nothing else, and nothing for a comment"


PACKAGE = f"{TOP/'medseg'}/"  # not any folder of that name: a clone is called so too
TRACE = f"""import json, os, sys
# before the tracer listens, and once for all chapters
import matplotlib.pyplot, nibabel, scipy.ndimage, torch._dynamo
matplotlib.use('agg')
_called, _known = set(), set()
def _note(frame, event, arg):
    code = frame.f_code
    if event != "call" or code in _known: return
    _known.add(code)
    if code.co_flags & 1 and code.co_filename.startswith({PACKAGE!r}):
        _called.add((code.co_filename.removeprefix({PACKAGE!r}), code.co_qualname))
for _place, _code, _told in json.load(sys.stdin):
    if not os.fork():   # a process for each chapter, that has loaded nothing of the book
        os.chdir(_place); sys.setprofile(_note)
        exec(compile(_code, "chapter", "exec"), globals())
        sys.setprofile(None)
        with open(_told, "w") as _file: json.dump(sorted(_called), _file)
        os._exit(0)
    if os.wait()[1]: raise SystemExit("the chapter failed")"""
TRACED = "05_data/12_patch.ipynb", "11_runs/08_page.ipynb", "06_train/07_loop.ipynb"


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    "The code of some chapters, and the functions of the package that they call."
    top, codes = tmp_path_factory.mktemp("traced"), [
        chapter_code(json.loads((TOP / "nbs" / chapter).read_text())) for chapter in TRACED
    ]
    todo = [
        (str((TOP / "nbs" / chapter).parent), code, str(top / f"{n}.json"))
        for n, (chapter, code) in enumerate(zip(TRACED, codes))
    ]
    done = subprocess.run(
        [sys.executable, "-c", TRACE], input=json.dumps(todo), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-800:]
    return {
        chapter: (code, json.loads((top / f"{n}.json").read_text()))
        for n, (chapter, code) in enumerate(zip(TRACED, codes))
    }


@pytest.mark.parametrize("chapter", TRACED)
def test_no_function_is_called_that_the_digest_does_not_cover(chapter, package, traced):
    "A chapter is run under a tracer; each function of the package that it calls is on its list."
    code, called = traced[chapter]
    used = chapter_uses(code, package)
    names = {
        f"medseg.{file.removesuffix('.py').replace('/', '.')}.{name.split('.')[0]}"
        for file, name in called
        if not name.startswith("<") and "/_" not in file
    }
    assert bool(names & used) == bool(used), "the tracer sees what a chapter uses"
    assert not {
        n for n in names - used if n.rpartition(".")[0] != "medseg"
    }, "called, but a change would go unnoticed"


def test_the_file_is_small_and_has_one_line_a_chapter():
    text = (TOP / FILE).read_text()
    assert len(text) < 200_000 and text.count('"cells"') == len(notebooks(TOP)) == sum(
        '"cells"' in line for line in text.splitlines()
    )


def test_a_folder_counts_without_what_no_clone_has(tmp_path):
    for name in ("a.ipynb", "b.ipynb"):
        (tmp_path / name).write_text("{}")
    before = file_digest(tmp_path)
    for name in ("runs", ".ipynb_checkpoints", "__pycache__"):
        (tmp_path / name).mkdir()
    assert file_digest(tmp_path) == before
    (tmp_path / "c.ipynb").write_text("{}")
    assert file_digest(tmp_path) != before
