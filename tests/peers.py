"""Five readers, one list of bad files: what does each make of every case?

`python tests/peers.py` prints, for each reader that is installed, how often it came to each
verdict. Each reader runs in a process of its own, which may grow by 1 GB and not more.

clear: an error that names the file and the problem. cryptic: an error that lacks one of the two.
warned: used after a word about the problem. vague: used after words that do not name it. silent:
used without a word. memory: it asked for more than 1 GB for a file of some kilobytes. Whether a
message names the problem is decided by words, and generously: one is enough.
"""

import importlib.util
import io
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from awkward import make_awkward
from oddfile import CLASSES, Odd

_WORDS = {  # beginning of a code: words of which a message that names the problem has one
    "gzip": "trunc|end.of|eof|incomplete|crc|corrupt|checksum|gzip|decompress",
    "file_trunc": "trunc|bytes|short|incomplete|end of|size|expected",
    "header_trunc": "trunc|bytes|short|incomplete|end of|header size",
    "declared|size_": "size|dim|large|bytes|trunc|expected",
    "dim|two_d|four_d": "dim|shape|negative|axes|channel|3-?d|4-?d|2-?d|size",
    "pixdim|negative_pix": "pixdim|spacing|zoom|voxel size|delta",
    "magic": "magic",
    "datatype|bitpix|rgb|complex": "type|bitpix|rgb|complex|colou?r|component|channel",
    "offset": "offset",
    "scale": "slope|scal|inf",
    "units": "unit",
    "affine|spacing_abs": "affine|sform|srow|direction|singular|orthon|shear|determinant|spacing",
    "orient|xform|qform|sform": "orient|affine|qform|sform|quatern|direction",
    "voxel|label_nan|constant": "nan|inf|constant|std|varia|uniform|one value|only the value",
    "wrapped": "wrap|negative|unsigned|65535",
    "header_text": "phi|patient|name|text|private",
    "label": "label|integer|class|value|float|negative",
    "pair": "shape|size|spacing|origin|affine|direction|orient|dim|physical",
    "empty|html|text_|lfs|format|not_found|no_images|container|trailing": (
        "empty|html|web page|text|lfs|format|file type|not a|exist|found|no"
        " such|director|recogni|unsupported|zero|trailing|behind|gzip|content"
    ),
    "image_part|header_part|data_file|encoding|header_unread": (
        "missing|found|exist|no such|open|pair|img|hdr|encoding|parse|file"
    ),
    "dicom_": (
        "slice|spacing|position|orient|uniform|series|modality|seg|pixel|decod|transfer|size|shape|colou?r|rgb|length|bytes|tilt|gap|duplicate|direction"
    ),
}


def verdict(case: Odd, error: str | None, said: str = "", memory: bool = False) -> str:
    """One word for how a reader dealt with a case.

    Parameters
    ----------
    error
        what the reader raised, as text; None if it read the case
    said
        what it said otherwise
    memory
        it ran out of its gigabyte
    """
    if case.expected == "accept":
        return "ok" if error is None else "false alarm"
    words = next(v for k, v in _WORDS.items() if re.match(k, case.code))

    # without paths and addresses, whose letters could be taken for words
    def bare(text):
        return re.sub(r"\S*/\S+|0x[0-9a-f]+", "", text)

    if error is not None:
        names = case.path.name in error or str(case.path.parent) in error
        return (
            "memory"
            if memory
            else "clear" if names and re.search(words, bare(error), re.I) else "cryptic"
        )
    return "warned" if re.search(words, bare(said), re.I) else "vague" if said.strip() else "silent"


def _nibabel():
    import nibabel as nib

    return lambda image, label: [nib.load(p).get_fdata() for p in (image, label) if p]


def _simpleitk():
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    def one(path):
        if os.path.isdir(path):
            path = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(path) or path
        return sitk.GetArrayFromImage(sitk.ReadImage(path))

    return lambda image, label: [one(p) for p in (image, label) if p]


def _torchio():
    import torchio as tio

    def pair(image, label):
        labels = {"label": tio.LabelMap(label)} if label else {}
        subject = tio.Subject(image=tio.ScalarImage(image), **labels)
        subject.load()
        assert subject.spatial_shape and subject.spacing
        return tio.ZNormalization()(subject)

    return pair


def _monai():
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, NormalizeIntensityd

    def pair(image, label):
        keys = ["image", "label"] if label else ["image"]
        steps = [LoadImaged(keys), EnsureChannelFirstd(keys), NormalizeIntensityd("image")]
        return Compose(steps)(dict(zip(keys, (image, label))))

    return pair


def _medseg():
    from medseg.io.check import check_path

    def pair(image, label):
        row = check_path(image, label, CLASSES if label else None)
        if row["status"] == "refused":
            raise ValueError(row["message"])
        if row["message"]:
            warnings.warn(row["message"])

    return pair


READERS = dict(
    nibabel=_nibabel, SimpleITK=_simpleitk, torchio=_torchio, monai=_monai, medseg=_medseg
)


def _status(key: str) -> int:
    "A line of the process's status, in kB."
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key + ":"))


def _late(*_):
    raise TimeoutError("took more than 20 s")


def _attempt(read, case: dict, log: io.StringIO) -> dict:
    "What a reader raised, printed, logged and warned about one case, and what that cost."
    log.seek(0)
    log.truncate()
    error, memory, keep = None, False, (os.dup(1), os.dup(2))
    with tempfile.TemporaryFile() as heard, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for stream in (1, 2):
            os.dup2(heard.fileno(), stream)
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the memory starts anew
        base, began = _status("VmRSS"), time.perf_counter()
        signal.alarm(20)
        try:
            read(case["path"], case["label"])
        except BaseException as caught:
            error = str(caught) or type(caught).__name__
            memory = isinstance(caught, MemoryError) or bool(
                re.search("memory|bad_alloc|allocate", str(caught), re.I)
            )
        signal.alarm(0)
        cost = dict(seconds=time.perf_counter() - began, mb=(_status("VmHWM") - base) / 1024)
        for stream, old in zip((1, 2), keep):
            os.dup2(old, stream)
            os.close(old)
        heard.seek(0)
        known = (DeprecationWarning, FutureWarning, ResourceWarning)
        words = "\n".join(str(w.message) for w in said if not issubclass(w.category, known))
        text = heard.read().decode(errors="replace") + log.getvalue() + words
    return dict(error=error, said=text[-2000:], memory=memory) | cost


def _child(name: str, todo: str, out: str, start: str):
    "Read all cases from number `start` on, a row each; the limit of memory is set here."
    cases, read = json.loads(Path(todo).read_text()), READERS[name]()
    for case in cases:  # every library is loaded before the limit is set
        if case["kind"] in ("good", "dicom_good", "nrrd_good", "mgh_good"):
            try:
                read(case["path"], case["label"])
            except Exception:
                pass
    most = (_status("VmSize") << 10) + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, _late)
    log = io.StringIO()
    logging.basicConfig(stream=log, level=logging.WARNING, force=True)
    with open(out, "a") as done:
        for case in cases[int(start) :]:
            done.write(json.dumps(_attempt(read, case, log)) + "\n")
            done.flush()


def run_reader(name: str, cases: list[Odd], folder: Path) -> list[dict]:
    "A row for each case; a process that dies is started again behind the case that killed it."
    todo, out = folder / "todo.json", folder / f"{name}.jsonl"
    rows = [dict(kind=c.kind, path=str(c.path), label=c.label and str(c.label)) for c in cases]
    todo.write_text(json.dumps(rows))
    out.touch()
    while (start := len(out.read_text().splitlines())) < len(cases):
        command = [sys.executable, __file__, name, todo, out, str(start)]
        ended = subprocess.run(command, capture_output=True, text=True)
        if len(out.read_text().splitlines()) < len(cases):
            row = dict(error=f"the process died: {ended.stderr[-200:]}", said="", memory=False)
            with open(out, "a") as file:
                file.write(json.dumps(row | dict(seconds=0, mb=0)) + "\n")
    return [json.loads(line) for line in out.read_text().splitlines()]


def _family(case: Odd) -> str:
    "The good case of the same format."
    start = case.kind.split("_")[0]
    other = {"mhd": "mha_good"} | {k: f"{k}_good" for k in ("dicom", "nrrd", "mha", "mgh")}
    return other.get(start, "good")


def judged(cases: list[Odd], rows: list[dict]) -> list[str]:
    """A verdict for each case.

    A reader that cannot open the good file of a format is not blamed for the bad ones, and what it
    also says about good files does not count as a warning.
    """
    number = {c.kind: n for n, c in enumerate(cases)}
    accepted = [r["said"].splitlines() for c, r in zip(cases, rows) if c.expected == "accept"]
    always = {line for lines in accepted for line in lines}
    found = []
    for c, r in zip(cases, rows):
        said = "\n".join(line for line in r["said"].splitlines() if line not in always)
        unread = rows[number[_family(c)]]["error"]
        found.append("n/a" if unread else verdict(c, r["error"], said, r["memory"]))
    return found


def main():
    "Print how often each reader came to each verdict."
    here = [name for name in READERS if importlib.util.find_spec(name)]
    with tempfile.TemporaryDirectory() as folder:
        cases = make_awkward(Path(folder) / "cases")
        ran = {name: run_reader(name, cases, Path(folder)) for name in here}
    for expected in ("refuse", "repair", "accept"):
        for name in here:
            pairs = zip(judged(cases, ran[name]), cases)
            got = Counter(v for v, c in pairs if c.expected == expected)
            print(f"{expected:8}{name:10}", dict(got.most_common()))
    for name in here:
        slow, wide = (max(r[k] for r in ran[name]) for k in ("seconds", "mb"))
        print(f"{name:10} at most {slow:.2f} s and {wide:.0f} MB")


if __name__ == "__main__":
    _child(*sys.argv[1:]) if len(sys.argv) > 1 else main()
