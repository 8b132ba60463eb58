"""Field cases: one scan under many names, two scans under one header, folders of links, caches that
several people use.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from medseg.data.cache import cache_key, cached, put_entry, trim
from medseg.data.fingerprint import fingerprint_of
from medseg.data.manifest import data_digest, read_manifest
from medseg.data.related import related
from medseg.io.dicom import read_series
from medseg.io.files import InputError, RepairWarning
from medseg.io.identity import same_scans, scan_digest
from medseg.io.read import scan_files
from medseg.zdepth.survey import find_volumes, survey

AFFINE = np.diag([3.0, 3.0, 5.0, 1.0])


def voxels(seed, shape=(24, 20, 12)):
    return np.random.default_rng(seed).integers(0, 200, shape).astype(np.int16)


def nifti(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels(seed), AFFINE), path)
    return path


def pair(folder, seed):
    nib.save(nib.Nifti1Pair(voxels(seed), AFFINE), folder / f"p{seed}.hdr")
    return folder / f"p{seed}.hdr"


def itk(folder, seed, name, packed):
    place = folder / f"{name.replace('.', '_')}{seed}{packed}"
    place.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(voxels(seed).T), str(place / name), packed)
    return place / name


def series(folder, seed):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True)
    for k, plane in enumerate(voxels(seed).transpose(2, 1, 0)):
        d, d.file_meta = (d := Dataset()), FileMetaDataset()
        d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = CTImageStorage
        d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{k + 1}"
        d.file_meta.TransferSyntaxUID, d.SeriesInstanceUID, d.StudyInstanceUID = (
            ExplicitVRLittleEndian,
            "1.2.3",
            "1.2",
        )
        d.Modality, d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = (
            "CT",
            *plane.shape,
            1,
            "MONOCHROME2",
        )
        (
            d.BitsAllocated,
            d.BitsStored,
            d.HighBit,
            d.PixelRepresentation,
            d.RescaleSlope,
            d.RescaleIntercept,
        ) = (16, 16, 15, 1, 1, 0)
        d.PixelSpacing, d.ImageOrientationPatient, d.ImagePositionPatient = (
            [3, 3],
            [1, 0, 0, 0, 1, 0],
            [0, 0, 5 * k],
        )
        d.PixelData = plane.tobytes()
        d.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)
    return folder


MAKERS = dict(
    hdr=pair,
    mhd=lambda f, s: itk(f, s, "a.mhd", False),
    zraw=lambda f, s: itk(f, s, "a.mhd", True),
    nhdr=lambda f, s: itk(f, s, "a.nhdr", False),
    nhdr_gz=lambda f, s: itk(f, s, "a.nhdr", True),
    nii=lambda f, s: nifti(f / f"{s}.nii.gz", s),
    dicom=lambda f, s: series(f / f"d{s}", s),
)


@pytest.mark.parametrize("kind", MAKERS)
def test_four_patients_of_one_grid_are_four(tmp_path, kind):
    scans = [MAKERS[kind](tmp_path, s) for s in range(4)]
    assert len({scan_digest(p) for p in scans}) == len({cache_key([p], {}) for p in scans}) == 4
    values = [fingerprint_of(p, tmp_path / "prints").values for p in scans]
    assert (
        len(set(values)) == 4
        and [fingerprint_of(p, tmp_path / "prints").values for p in scans] == values
    )
    assert same_scans(scans) == []


def test_either_of_a_pair_stands_for_both_and_labels_count(tmp_path):
    a, b = pair(tmp_path, 0), pair(tmp_path, 1)
    assert scan_digest(a) == scan_digest(a.with_suffix(".img")) and same_scans(
        [a, b, a.with_suffix(".img")]
    ) == [[0, 2]]
    assert cache_key([a, a], {}) != cache_key([a, b], {})
    before = cache_key([a, b], {})
    data = bytearray(b.with_suffix(".img").read_bytes())
    data[-1] ^= 1
    b.with_suffix(".img").write_bytes(data)
    assert cache_key([a, b], {}) != before


def test_every_file_of_a_series_counts_and_its_name_does_not(tmp_path):
    one = series(tmp_path / "one", 0)
    shutil.copytree(one, tmp_path / "two")
    for n, file in enumerate(sorted((tmp_path / "two").iterdir())):
        file.rename(file.with_name(f"IM{n:05d}"))
    assert scan_digest(one) == scan_digest(tmp_path / "two") and same_scans(
        [one, tmp_path / "two"]
    ) == [[0, 1]]
    (tmp_path / "two" / "IM00007").unlink()
    assert scan_digest(one) != scan_digest(tmp_path / "two") and len(scan_files(one)) == 12


def manifest(folder, rows, head="subject,image,label,split"):
    (folder / "m.csv").write_text(head + "\n" + "".join(row + "\n" for row in rows))
    return read_manifest(folder / "m.csv")


def test_data_digest_is_of_voxels_and_labels_in_any_order(tmp_path):
    rows = []
    for s in range(3):
        nifti(tmp_path / f"c{s}.nii.gz", s)
        nifti(tmp_path / f"l{s}.nii.gz", 10 + s)
        rows.append(f"s{s},c{s}.nii.gz,l{s}.nii.gz,train")
    first = data_digest(manifest(tmp_path, rows))
    assert data_digest(manifest(tmp_path, rows[::-1])) == first
    swapped = ["s0,c0.nii.gz,l1.nii.gz,train", "s1,c1.nii.gz,l0.nii.gz,train", rows[2]]
    assert data_digest(manifest(tmp_path, swapped)) != first
    assert data_digest(manifest(tmp_path, [*rows[:2], rows[2].replace("train", "test")])) != first
    series(tmp_path / "d", 5)
    with_series = manifest(tmp_path, [*rows, "s4,d,,train"])
    before = data_digest(with_series)
    file = tmp_path / "d" / "005.dcm"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert data_digest(with_series) != before != first


def other_name(folder, how):
    "`c3.nii.gz` under another name."
    here = folder / "c3.nii.gz"
    if how == "link":
        os.symlink("c3.nii.gz", folder / "alias.nii.gz")
    if how == "hard link":
        os.link(here, folder / "alias.nii.gz")
    if how == "copy":
        shutil.copy(here, folder / "alias.nii.gz")
    if how == "packed anew":
        (folder / "alias.nii.gz").write_bytes(gzip.compress(gzip.decompress(here.read_bytes()), 1))
    if how == "unpacked":
        (folder / "alias.nii").write_bytes(gzip.decompress(here.read_bytes()))
        return "alias.nii"
    if how == "detour":
        return f"../{folder.name}/c3.nii.gz"
    if how == "linked folder":
        os.symlink(folder, folder / "twin")
        return "twin/c3.nii.gz"
    return "alias.nii.gz"


@pytest.mark.parametrize(
    "how", ["link", "hard link", "copy", "packed anew", "unpacked", "detour", "linked folder"]
)
def test_one_scan_on_both_sides_is_seen_under_any_name(tmp_path, how):
    for s in (1, 3):
        nifti(tmp_path / f"c{s}.nii.gz", s)
    name = other_name(tmp_path, how)
    rows = ["s1,c1.nii.gz,,train", f"s3b,{name},,train", "s3,c3.nii.gz,,test"]
    with pytest.raises(InputError, match="s3b.*s3 ") as refused:
        manifest(tmp_path, rows)
    assert refused.value.code == "split_leak"
    with pytest.raises(InputError, match="each image once"):
        manifest(tmp_path, [r.replace(",test", ",train") for r in rows])
    manifest(tmp_path, rows[::2])


def test_one_series_and_one_pair_under_two_names(tmp_path):
    series(tmp_path / "a", 1)
    os.symlink("a", tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    pair(tmp_path, 2)
    for rows in (
        ["x,a,,train", "y,b,,test"],
        ["x,a,,train", "y,c,,test"],
        ["x,p2.hdr,,train", "y,p2.img,,test"],
    ):
        with pytest.raises(InputError, match="each image once"):
            manifest(tmp_path, rows)


def test_a_label_map_of_two_subjects(tmp_path):
    for s in (1, 2):
        nifti(tmp_path / f"c{s}.nii.gz", s)
    nifti(tmp_path / "l1.nii.gz", 9)
    shutil.copy(tmp_path / "l1.nii.gz", tmp_path / "l2.nii.gz")
    os.symlink("l1.nii.gz", tmp_path / "l3.nii.gz")
    for label in ("l1.nii.gz", "l2.nii.gz", "l3.nii.gz"):
        with pytest.raises(InputError, match="each label once"):
            manifest(tmp_path, ["a,c1.nii.gz,l1.nii.gz,", f"b,c2.nii.gz,{label},"])
    # MR and CT of one person
    manifest(tmp_path, ["a,c1.nii.gz,l1.nii.gz,", "a,c2.nii.gz,l1.nii.gz,"])
    for name in ("e1", "e2"):
        nib.save(
            nib.Nifti1Image(np.zeros((24, 20, 12), np.uint8), AFFINE), tmp_path / f"{name}.nii.gz"
        )
    # nothing was found in either
    manifest(tmp_path, ["a,c1.nii.gz,e1.nii.gz,", "b,c2.nii.gz,e2.nii.gz,"])


def test_linked_folders_are_looked_at_and_their_copies_linked(tmp_path):
    for s in range(4):
        nifti(tmp_path / "store" / f"sub-{s:02d}" / "ct.nii.gz", s)
    cohort = tmp_path / "cohort"
    cohort.mkdir()
    for s in (0, 1):
        shutil.copytree(tmp_path / "store" / f"sub-{s:02d}", cohort / f"sub-{s:02d}")
    for s in (2, 3):
        os.symlink(tmp_path / "store" / f"sub-{s:02d}", cohort / f"sub-{s:02d}")
    os.symlink(tmp_path / "store" / "sub-02", cohort / "sub-02-again")
    assert len(survey(cohort)["volumes"]) == 5
    links = related(cohort)["links"]
    assert [{Path(link[k]).parent.name for k in "ab"} for link in links] == [
        {"sub-02", "sub-02-again"}
    ] and links[0]["kind"] == "identical"


def test_loops_end(tmp_path):
    nifti(tmp_path / "a" / "ct.nii.gz", 0)
    nifti(tmp_path / "b" / "ct.nii.gz", 1)
    os.symlink(tmp_path, tmp_path / "a" / "up")
    os.symlink(tmp_path / "b", tmp_path / "a" / "b")
    os.symlink(tmp_path / "a", tmp_path / "b" / "a")
    os.symlink("self", tmp_path / "self")
    found = [p.relative_to(tmp_path).as_posix() for p in find_volumes(tmp_path)]
    assert found == ["self", "a/ct.nii.gz", "a/b/ct.nii.gz", "b/ct.nii.gz", "b/a/ct.nii.gz"] or set(
        found
    ) >= {"self", "a/ct.nii.gz", "b/ct.nii.gz"}


def test_what_was_not_looked_at_is_named(tmp_path):
    nifti(tmp_path / "sub-00_ct.nii.gz", 0)
    for name in ("sub-02_ct.nii.gz", "sub-05", "readme"):
        os.symlink(f"/nowhere/{name}", tmp_path / name)
    dark = {"sub-02_ct.nii.gz", "sub-05", "readme"}
    rows = survey(tmp_path)["refused"]
    assert {Path(r["path"]).name: r["code"] for r in rows} == dict.fromkeys(dark, "link_dangling")
    assert {Path(r["path"]).name for r in related(tmp_path)["left_out"]} == dark
    told = subprocess.run(
        [sys.executable, "-m", "medseg", "check", str(tmp_path)], capture_output=True, text=True
    )
    assert (
        told.returncode == 1
        and all(name in told.stderr for name in dark)
        and told.stderr.count("mount the store") == 3
    )


def test_a_series_with_a_file_that_is_not_there_is_refused(tmp_path):
    folder = series(tmp_path / "d", 1)
    # the last slice: no gap gives it away
    (folder / "011.dcm").unlink()
    os.symlink("/nowhere/011.dcm", folder / "011.dcm")
    with pytest.raises(InputError, match="011.dcm.*all files of the series"):
        read_series(folder)
    assert {Path(r["path"]).name for r in survey(tmp_path)["refused"]} == {"d", "011.dcm"}


AS_NOBODY = """
import encodings.cp437, json, os, sys, warnings
# what is loaded later may lie where nobody else may look
from pathlib import Path
sys.path[:0] = json.loads(sys.argv[3])
import numpy as np
import medseg.data.cache, medseg.data.fingerprint, medseg.data.related, medseg.zdepth.survey
import medseg.collapse.coverage, nibabel
medseg.data.cache.cache_key([], {})
os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.umask(0o022)
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    folder = Path(sys.argv[2])
    exec(compile(sys.argv[1], "case", "exec"))
print(json.dumps(dict(out=out, heard=[str(w.message) for w in heard])))
"""


@pytest.fixture
def shared():
    "A folder that anybody may enter, also from above, which pytest's own is not."
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def nobody(code, folder):
    "What `code` leaves in `out` when another user runs it, and the warnings."
    if os.getuid():
        pytest.skip("only root can act as another user")
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, code, str(folder), json.dumps(sys.path)],
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return told["out"], told["heard"]


TAKE = (
    "from medseg.data.cache import cached\nout = cached(folder/'cache', [folder/'a.nii'], {},"
    " lambda: (dict(a=np.arange(3)), dict(n=1)))[0]['a'].tolist()"
)


def make_entry(folder, mask):
    old = os.umask(mask)
    try:
        return cached(
            folder / "cache", [folder / "a.nii"], {}, lambda: (dict(a=np.arange(3)), dict(n=1))
        )
    finally:
        os.umask(old)


@pytest.mark.parametrize(
    "mask, folder_mode, file_mode",
    [(0o022, 0o755, 0o644), (0o002, 0o775, 0o664), (0o027, 0o750, 0o640), (0o077, 0o700, 0o600)],
)
def test_entries_follow_the_umask(tmp_path, mask, folder_mode, file_mode):
    nifti(tmp_path / "a.nii", 0)
    make_entry(tmp_path, mask)
    (entry,) = (tmp_path / "cache").iterdir()
    assert entry.stat().st_mode & 0o777 == folder_mode and {
        f.stat().st_mode & 0o777 for f in entry.iterdir()
    } == {file_mode}


def test_a_folder_set_for_a_group_shares_with_it(tmp_path):
    nifti(tmp_path / "a.nii", 0)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o2770)
    make_entry(tmp_path, 0o077)
    (entry,) = (tmp_path / "cache").iterdir()
    assert entry.stat().st_mode & 0o7777 == 0o2770 and {
        f.stat().st_mode & 0o777 for f in entry.iterdir()
    } == {0o660}
    old = os.umask(0o077)
    try:
        fingerprint_of(tmp_path / "a.nii", tmp_path / "cache")
    finally:
        os.umask(old)
    assert next((tmp_path / "cache").glob("*.npz")).stat().st_mode & 0o777 == 0o660


def test_another_user_reads_a_cache_that_he_cannot_write(shared):
    nifti(shared / "a.nii", 0)
    make_entry(shared, 0o022)
    fingerprint_of(shared / "a.nii", shared / "cache")
    assert nobody(TAKE, shared) == ([0, 1, 2], [])
    assert (
        nobody(
            "from medseg.data.fingerprint import fingerprint_of\nout ="
            " len(fingerprint_of(folder/'a.nii', folder/'cache').places)",
            shared,
        )[1]
        == []
    )
    # an entry that is not there, and cannot be kept
    out, heard = nobody(TAKE.replace("{}, lambda", "dict(b=1), lambda"), shared)
    assert (
        out == [0, 1, 2]
        and len(heard) == 1
        and "the work is not kept" in heard[0]
        and str(shared / "cache") in heard[0]
    )


def test_what_cannot_be_read_is_named_and_stays(shared):
    nifti(shared / "a.nii", 0)
    make_entry(shared, 0o077)
    fingerprint_of(shared / "a.nii", shared / "cache")
    # anybody may write here, and could delete
    (shared / "cache").chmod(0o777)
    entry = next(p for p in (shared / "cache").iterdir() if p.is_dir())
    kept = next((shared / "cache").glob("*.npz"))
    kept.chmod(0o600)
    before = kept.stat().st_ino
    out, heard = nobody(TAKE, shared)
    assert (
        out == [0, 1, 2]
        and str(entry) in heard[0]
        and "left as it is" in heard[0]
        and (entry / "a.npy").is_file()
    )
    _, heard = nobody(
        "from medseg.data.fingerprint import fingerprint_of\nout ="
        " len(fingerprint_of(folder/'a.nii', folder/'cache').places)",
        shared,
    )
    assert str(kept) in heard[0] and kept.stat().st_ino == before
    # and trims nothing of it
    assert (
        nobody("from medseg.data.cache import trim\nout = trim(folder/'cache', 0.)", shared)[0]
        == []
    )
    assert (entry / "a.npy").is_file()


def test_a_folder_that_may_not_be_entered_is_named(shared):
    nifti(shared / "open" / "a.nii.gz", 0)
    nifti(shared / "closed" / "b.nii.gz", 1)
    # its name promises nothing
    (shared / "open" / "c").write_bytes((shared / "open" / "a.nii.gz").read_bytes())
    (shared / "closed").chmod(0o700)
    (shared / "open" / "c").chmod(0o600)
    out, _ = nobody(
        "from medseg.zdepth.survey import survey\nout = [(r['path'], r['code']) for r in"
        " survey(folder)['refused']]",
        shared,
    )
    assert sorted(out) == [
        [str(shared / "closed"), "not_readable"],
        [str(shared / "open" / "c"), "not_readable"],
    ]


def test_a_cache_that_is_damaged_full_or_foreign(tmp_path):
    nifti(tmp_path / "a.nii", 0)
    arrays, facts = make_entry(tmp_path, 0o022)
    (entry,) = (tmp_path / "cache").iterdir()
    (entry / "a.npy").write_bytes(b"damaged")
    with pytest.warns(RepairWarning, match="made again"):
        assert make_entry(tmp_path, 0o022)[0]["a"].tolist() == [0, 1, 2]
    (tmp_path / "blocked").write_text("a file where the cache should be")
    with pytest.warns(RepairWarning, match="blocked.*not kept"):
        arrays, facts = cached(
            tmp_path / "blocked",
            [tmp_path / "a.nii"],
            {},
            lambda: (dict(a=np.arange(3)), dict(n=(1, 2))),
        )
    assert arrays["a"].tolist() == [0, 1, 2] and facts == dict(n=[1, 2])
    with pytest.warns(RepairWarning, match="not kept"):
        fingerprint_of(tmp_path / "a.nii", tmp_path / "blocked")


def test_trim_knows_its_own_entries(tmp_path):
    nifti(tmp_path / "cohort" / "ct.nii.gz", 0)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "about.json").write_text("{}")
    put_entry(tmp_path, "0123456789abcdef", dict(a=np.zeros(1000)), {})
    (tmp_path / "mixed").mkdir()
    shutil.copytree(tmp_path / "0123456789abcdef", tmp_path / "mixed", dirs_exist_ok=True)
    (tmp_path / "mixed" / "thesis.tex").write_text("x")
    assert trim(tmp_path, 0.0) == ["0123456789abcdef"]
    assert {p.name for p in tmp_path.iterdir()} == {"cohort", "notes", "mixed"}


def test_two_writers_at_a_time(tmp_path):
    nifti(tmp_path / "a.nii", 0)
    code = TAKE.replace("folder", "Path(sys.argv[1])")
    run = [
        sys.executable,
        "-c",
        f"import sys, numpy as np\nfrom pathlib import Path\n{code}\nprint(out)",
        str(tmp_path),
    ]
    jobs = [
        subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [job.communicate() for job in jobs] == [("[0, 1, 2]\n", "")] * 3
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_nothing_is_said_about_a_sound_cohort(tmp_path):
    for s in range(3):
        nifti(tmp_path / f"c{s}.nii.gz", s)
        nifti(tmp_path / f"l{s}.nii.gz", 10 + s)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            len(
                manifest(
                    tmp_path,
                    [f"s{s},c{s}.nii.gz,l{s}.nii.gz,{'test' if s else 'train'}" for s in range(3)],
                )
            )
            == 3
        )
