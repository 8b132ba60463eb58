"""Public sets from a server of this machine, with small archives laid out like the real ones.

The real hosts are never asked.
"""

import functools
import hashlib
import http.server
import io
import json
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from oddfile import ORGAN, SCAN, nifti_bytes
from oddseries import write_itk, write_stack

from medseg.data.fetch import SETS, File, download, fetch, find_set
from medseg.data.manifest import read_manifest
from medseg.io.files import InputError
from medseg.zdepth.survey import survey


def gz(data):
    import gzip

    return gzip.compress(data, 1, mtime=0)


def layouts(folder) -> dict:
    "Members of a small archive for each set, by name, as the real archive has them."
    scan, label = gz(nifti_bytes(SCAN)), gz(nifti_bytes(ORGAN))
    series = write_stack(folder / "dicom")
    mha, mask = (
        write_itk(folder / f"{n}.mha", voxels=v).read_bytes()
        for n, v in (("image", SCAN), ("mask", ORGAN))
    )
    npz = io.BytesIO()
    np.savez(npz, train_images=SCAN[None], train_labels=np.array([[1]]))
    return dict(
        msd_liver={
            "Task03_Liver/dataset.json": b'{"labels": {"0": "background", "1": "liver"}}',
            **{
                f"Task03_Liver/{d}/liver_{n}.nii.gz": v
                for n in (0, 1)
                for d, v in (
                    ("imagesTr", gz(nifti_bytes(SCAN + n))),
                    ("labelsTr", gz(nifti_bytes(np.roll(ORGAN, n, 0)))),
                )
            },
            "Task03_Liver/imagesTs/liver_9.nii.gz": gz(nifti_bytes(SCAN + 9)),
            "Task03_Liver/imagesTr/._liver_0.nii.gz": b"\0" * 100,
        },
        chaos={
            **{
                f"Train_Sets/CT/1/DICOM_anon/i{n:04d}.dcm": p.read_bytes()
                for n, p in enumerate(sorted(series.iterdir()))
            },
            "Train_Sets/CT/1/Ground/liver_GT_000.png": b"\x89PNG\r\n\x1a\n",
        },
        verse={
            "dataset-01training/rawdata/sub-verse004/sub-verse004_ct.nii.gz": scan,
            "dataset-01training/derivatives/sub-verse004/sub-verse004_seg-vert_msk.nii.gz": label,
            "dataset-01training/derivatives/sub-verse004/sub-verse004_seg-subreg_ctd.json": b"[]",
        },
        spider={"images/1_t2.mha": mha},
        spider_masks={"masks/1_t2.mha": mask},
        synthrad={
            f"Task1/pelvis/1PA001/{n}.nii.gz": v
            for n, v in (("mr", scan), ("ct", scan), ("mask", label))
        },
        organmnist3d=npz.getvalue(),
    )


def packed(name, members) -> bytes:
    data = io.BytesIO()
    if isinstance(members, bytes):
        return members
    if name.endswith(".tar"):
        with tarfile.open(fileobj=data, mode="w") as tar:
            for n, content in members.items():
                info = tarfile.TarInfo(n)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    else:
        with zipfile.ZipFile(data, "w") as z:
            for n, content in members.items():
                z.writestr(n, content)
    return data.getvalue()


class Server(http.server.SimpleHTTPRequestHandler):
    "Files of a folder; /endless never ends, /slow.tar stops halfway, /moved.tar points elsewhere."

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                return
        if self.path == "/slow.tar":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(bytes(500))
            return
        if self.path == "/moved.tar":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        super().do_GET()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The address of a server with all sets, and the digests of its files."
    top = tmp_path_factory.mktemp("www")
    made, digests = layouts(tmp_path_factory.mktemp("made")), {}
    for name, source in SETS.items():
        for n, file in enumerate(source.files):
            leaf = f"{name}-{n}-" + file.url.rsplit("/", 1)[-1]
            data = packed(leaf, made["spider_masks" if (name, n) == ("spider", 1) else name])
            (top / leaf).write_bytes(data)
            digests[name, n] = (leaf, hashlib.sha256(data).hexdigest())
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Server, directory=top)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", digests, top
    server.shutdown()
    server.server_close()


@pytest.fixture
def local(site, monkeypatch):
    "`SETS` with the addresses of the server and its digests."
    at, digests, _ = site
    from dataclasses import replace

    for name, source in SETS.items():
        files = tuple(
            File(f"{at}/{digests[name, n][0]}", f"sha256:{digests[name, n][1]}", f.most_gb)
            for n, f in enumerate(source.files)
        )
        monkeypatch.setitem(SETS, name, replace(source, files=files))
    return at


def refused(call):
    with pytest.raises(InputError) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return caught.value.code


def left(folder):
    return (
        sorted(p.name for p in Path(folder).iterdir() if p.name != ".downloads")
        if Path(folder).exists()
        else []
    )


@pytest.mark.parametrize("name", SETS)
def test_each_set_arrives_whole(name, local, tmp_path):
    folder = fetch(name, tmp_path)
    told = json.loads((folder / "source.json").read_text())
    assert (
        told["licence"] == SETS[name].licence
        and len(told["files"]) == len(SETS[name].files)
        and all(len(f["sha256"]) == 64 for f in told["files"])
    )
    assert left(tmp_path) == [name] and not list((tmp_path / ".downloads").iterdir())
    table = survey(folder)
    found = {"msd_liver": 5, "chaos": 1, "verse": 2, "spider": 2, "synthrad": 3, "organmnist3d": 0}[
        name
    ]
    assert len(table["volumes"]) == found, table["refused"]
    assert refused(lambda: fetch(name, tmp_path)) == "folder_exists"
    if name == "msd_liver":
        assert {
            i.subject for i in read_manifest(folder / f"{name}-0-Task03_Liver" / "Task03_Liver")
        } == {"liver_0", "liver_1", "liver_9"}


def test_the_table_is_sane():
    for name, source in SETS.items():
        assert (
            source.licence.startswith("CC BY") and source.page.startswith("http") and source.files
        )
        for f in source.files:
            kind, _, digest = f.digest.partition(":")
            assert f.url.startswith("https://") and (
                not f.digest or len(digest) == {"sha256": 64, "md5": 32}[kind]
            )
    assert sum(all(f.digest for f in s.files) for s in SETS.values()) == 4


def test_what_is_not_the_file_is_refused(site, local, tmp_path):
    at, digests, top = site
    leaf, true = digests["verse", 0]
    assert refused(lambda: fetch("verse", tmp_path, sha256="0" * 64)) == "digest_wrong"
    assert refused(lambda: fetch("verse", tmp_path, f"{at}/{leaf}")) == "digest_unknown"
    assert refused(lambda: fetch("verse", tmp_path, f"{at}/nothing.zip", true)) == "download_failed"
    assert refused(lambda: fetch("verse", tmp_path, f"{at}/slow.tar", "any")) == "download_failed"
    assert refused(lambda: fetch("verse", tmp_path, f"{at}/moved.tar", "any")) == "download_failed"
    assert refused(lambda: fetch("verse", tmp_path, "file:///etc/passwd", "any")) == "url_kind"
    assert refused(lambda: fetch("lits", tmp_path)) == "set_unknown"
    assert left(tmp_path) == []
    assert fetch("verse", tmp_path, f"{at}/{leaf}", "any").is_dir()
    assert json.loads((tmp_path / "verse" / "source.json").read_text())["files"][0][
        "checked"
    ].startswith("not checked")


def test_a_server_without_end_is_cut_off(site, tmp_path):
    at, _, _ = site
    began = time.time()
    assert (
        refused(lambda: download(File(f"{at}/endless", "", 0.02), tmp_path)) == "download_too_large"
    )
    assert time.time() - began < 20 and not [
        p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size
    ]


def test_a_bomb_in_a_set_leaves_nothing(site, local, tmp_path, monkeypatch):
    at, _, top = site
    from dataclasses import replace

    with zipfile.ZipFile(top / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("a", bytes(30_000_000))
    monkeypatch.setitem(SETS, "verse", replace(SETS["verse"], most_unpacked_gb=0.01))
    assert refused(lambda: fetch("verse", tmp_path, f"{at}/bomb.zip", "any")) == "archive_bomb"
    assert left(tmp_path) == []


def test_a_second_try_does_not_download_twice(site, local, tmp_path):
    "A file with the right digest is kept when the unpacking failed."
    file = find_set("chaos").files[0]
    kept = tmp_path / ".downloads"
    kept.mkdir()
    download(file, kept)
    seen = []
    assert fetch("chaos", tmp_path, see=lambda done, told: seen.append(done)).is_dir() and not seen
