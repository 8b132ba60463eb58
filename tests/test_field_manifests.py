"""What a manifest declares is obeyed or refused by the line or field that says it.

Empty files stand for scans.
"""

import json
from functools import partial

import pytest
from outcome import outcome as told

from medseg.data.manifest import read_manifest

HEAD = "subject,image,label,split,modality\n"
ROWS = [f"s{k},c{k}.nii.gz,l{k}.nii.gz,,CT" for k in range(6)]


@pytest.fixture
def here(tmp_path):
    for k in range(6):
        for stem in "cl":
            (tmp_path / f"{stem}{k}.nii.gz").touch()
    return tmp_path


outcome = partial(told, read_manifest)


def csv(here, data):
    (here / "m.csv").write_bytes(data if isinstance(data, bytes) else data.encode())
    return outcome(here / "m.csv")


@pytest.mark.parametrize(
    "line, old, new",
    [
        (2, ",CT", ',"CT'),
        (3, "s3", '"s3'),
        (0, "s0", '"s0'),
        (5, ",CT", ',"CT'),
        (1, "c1", '"c1" x'),
        (4, ",,", ',"",")'),
    ],
)
def test_an_open_quotation_mark_is_named_by_its_line(here, line, old, new):
    rows = ROWS.copy()
    rows[line] = rows[line].replace(old, new)
    code, words = csv(here, HEAD + "\n".join(rows) + "\n")
    assert code == "manifest_row" and f"line {line + 2}: found a quotation mark" in words


def test_two_open_quotation_marks_swallow_nothing(here):
    rows = ROWS.copy()
    rows[1] += '"'
    rows[1] = rows[1].replace(",CT", ',"CT')
    assert [i.subject for i in csv(here, HEAD + "\n".join(rows))[0]] == [f"s{k}" for k in range(6)]
    # together they would make one legal value of three lines
    rows[2], rows[4] = '"' + rows[2], rows[4] + '"'
    assert csv(here, HEAD + "\n".join(rows))[0] == "manifest_row"
    many = HEAD + "".join(f"s{k},c0.nii.gz,l0.nii.gz,,{chr(34)*(k == 0)}CT\n" for k in range(6000))
    assert "line 2:" in csv(here, many)[1]


@pytest.mark.parametrize(
    "data",
    [
        (HEAD + "\n".join(ROWS)).encode("utf-8-sig"),
        (HEAD + "\n".join(ROWS)).replace("\n", "\r").encode(),
        (HEAD + "\n".join(ROWS)).replace("\n", "\r\n").encode(),
        ("\n\n" + HEAD + "\n\n".join(ROWS) + "\n,,,,\n\n").encode(),
        (HEAD + "\n".join(ROWS)).replace(",", " , ").encode(),
        (HEAD + "\n".join('"' + r.replace(",", '","') + '"' for r in ROWS)).encode(),
    ],
)
def test_ways_to_write_the_same(here, data):
    items, said = csv(here, data)
    assert [(i.subject, i.image.name, i.label.name, i.modality) for i in items] == [
        (f"s{k}", f"c{k}.nii.gz", f"l{k}.nii.gz", "CT") for k in range(6)
    ] and not said


@pytest.mark.parametrize(
    "text, code, word",
    [
        (HEAD.replace(",", ";") + ROWS[0].replace(",", ";"), "manifest_column", "commas"),
        (HEAD.replace(",", "\t") + ROWS[0].replace(",", "\t"), "manifest_column", "commas"),
        (
            HEAD + ROWS[0] + "\n" + HEAD + ROWS[1],
            "manifest_row",
            "line 3: found the names of the columns again",
        ),
        (HEAD + ROWS[0] + ",x", "manifest_row", "6 values for 5 columns"),
        (HEAD + "s0,c0.nii.gz", "manifest_row", "2 values for 5"),
        (HEAD + ROWS[0].replace("s0", "s\0"), "manifest_row", "control character"),
        (HEAD + ROWS[0].replace("s0", " "), "manifest_value", "subject"),
        (HEAD + ROWS[0] + "\n" + ROWS[0], "manifest_doubled", "each image once"),
        ("subject,image,image\ns0,c0.nii.gz,c1.nii.gz", "manifest_column", "image twice"),
        ("subject,image,age\ns0,c0.nii.gz,40", "manifest_column", "age"),
        (HEAD + ROWS[0].replace(",,", ",Test,"), "manifest_value", "Test"),
        (HEAD + ROWS[0].replace("l0", "c0"), "manifest_doubled", "is an image too"),
        (HEAD + ROWS[0].replace("l0", "l9"), "manifest_file", "l9"),
    ],
)
def test_what_cannot_be_meant(here, text, code, word):
    found, words = csv(here, text)
    assert found == code and word in words


def test_other_encodings(here):
    assert csv(here, (HEAD + ROWS[0]).encode("utf-16"))[0] == "manifest_encoding"


def test_labels_of_two_subjects(here):
    "Empty files could be nobody's labels; they are read to see that, and are no label map."
    assert (
        "l0.nii.gz: size: found 0 bytes"
        in csv(here, HEAD + ROWS[0] + "\n" + ROWS[1].replace("l1", "l0"))[1]
    )


# ---- dataset.json


def folder(tmp_path, cases=3, ending=".nii.gz", mark="", tests=0):
    root = tmp_path / "set"
    for d in ("imagesTr", "labelsTr", "labelsTr2", "imagesTs"):
        (root / d).mkdir(parents=True)
    for k in range(cases):
        (root / "imagesTr" / f"liver_{k}{mark}{ending}").touch()
        for d in ("labelsTr", "labelsTr2"):
            (root / d / f"liver_{k}{ending}").touch()
    for k in range(tests):
        (root / "imagesTs" / f"liver_{90 + k}{mark}{ending}").touch()
    return root


def told(root, **about):
    (root / "dataset.json").write_text(json.dumps(about))
    return outcome(root)


def listed(*numbers, labels="labelsTr", image="./imagesTr/liver_{}.nii.gz"):
    return [dict(image=image.format(k), label=f"./{labels}/liver_{k}.nii.gz") for k in numbers]


def test_the_list_decides(tmp_path):
    root = folder(tmp_path, 5, tests=2)
    items, said = told(
        root,
        training=listed(0, 2),
        numTraining=2,
        test=["./imagesTs/liver_90.nii.gz"],
        numTest=1,
        modality={"0": "CT"},
        labels={"0": "background", "1": "liver"},
        tensorImageSize="4D",
    )
    assert [(i.subject, i.split, i.modality) for i in items] == [
        ("liver_0", "", "CT"),
        ("liver_2", "", "CT"),
        ("liver_90", "test", "CT"),
    ]
    assert said == ["manifest_left_out", "manifest_left_out"]
    items, said = told(root, training=listed(0, 1, labels="labelsTr2"), test=[])
    assert {i.label.parent.name for i in items} == {"labelsTr2"} and len(items) == 2


def test_a_list_without_what_is_not_there(tmp_path):
    root = folder(tmp_path, 2)
    assert told(root, training=listed(0, 7))[0] == "manifest_file"
    assert (
        told(root, training=listed(0, 1), test=["./imagesTs/liver_99.nii.gz"])[0] == "manifest_file"
    )
    assert told(root, training=listed(0, 0))[0] == "manifest_doubled"


@pytest.mark.parametrize(
    "about, field",
    [
        (dict(numTraining=4), "numTraining"),
        (dict(numTraining=2), "numTraining"),
        (dict(numTest=3), "numTest"),
        (dict(training=listed(0), numTraining=3), "numTraining"),
        (dict(training=listed(0), test=[], numTest=1), "numTest"),
    ],
)
def test_numbers_of_cases(tmp_path, about, field):
    code, words = told(folder(tmp_path), **about)
    assert code == "manifest_count" and field in words


@pytest.mark.parametrize(
    "about, word",
    [
        (dict(channel_names={"0": "T1", "1": "T2"}), "2 channels"),
        (dict(modality={"0": "T1", "1": "T2"}), "2 channels"),
        (dict(labels={"background": 0, "liver": 1, "ignore": [2, 3]}), "ignore"),
        (dict(labels=["liver"]), "labels"),
        (dict(overwrite_image_reader_writer="NaturalImage2DIO"), "overwrite_image_reader_writer"),
        (dict(validation=listed(0)), "validation"),
        (dict(training={"a": 1}), "training"),
        (dict(training=[dict(image="a")]), "training[0]"),
        (dict(training=[listed(0)[0] | dict(fold=1)]), "training[0]"),
        (dict(training=[dict(image=["a", "b"], label="c")]), "training[0]"),
        (dict(training="imagesTr"), "training"),
        (dict(training=[3]), "training[0]"),
    ],
)
def test_declarations_that_cannot_be_obeyed(tmp_path, about, word):
    code, words = told(folder(tmp_path), **about)
    assert code == "manifest_json" and word in words


@pytest.mark.parametrize(
    "text",
    [
        '{"numTraining": 3, "numTraining": 3}',
        "[]",
        "{",
        "[" * 100000,
        '{"training": [{"image": "a", "image": "b"}]}',
    ],
)
def test_json_that_is_none(tmp_path, text):
    root = folder(tmp_path)
    (root / "dataset.json").write_text(text)
    assert outcome(root)[0] == "manifest_json"


def test_nnunet_second_version(tmp_path):
    root = folder(tmp_path, 3, ".mha", "_0000", tests=1)
    items, said = told(
        root,
        channel_names={"0": "MRI"},
        labels={"background": 0, "liver": 1},
        numTraining=3,
        file_ending=".mha",
        overwrite_image_reader_writer="SimpleITKIO",
    )
    assert [
        (i.subject, i.image.name, i.label and i.label.name, i.split, i.modality) for i in items
    ] == [
        *((f"liver_{k}", f"liver_{k}_0000.mha", f"liver_{k}.mha", "", "MR") for k in range(3)),
        ("liver_90", "liver_90_0000.mha", None, "test", "MR"),
    ]
    assert not said
    (root / "imagesTr" / "liver_1_0001.mha").touch()
    assert told(root, numTraining=3, file_ending=".mha")[0] == "manifest_json"


def test_nnunet_first_version_lists_names_without_the_mark(tmp_path):
    root = folder(tmp_path, 2, mark="_0000")
    items, said = told(root, training=listed(0, 1), numTraining=2)
    assert [(i.subject, i.image.name) for i in items] == [
        ("liver_0", "liver_0_0000.nii.gz"),
        ("liver_1", "liver_1_0000.nii.gz"),
    ] and not said


def test_numbers_that_look_like_channels(tmp_path):
    "AMOS calls its cases amos_0001: a list says that these are cases."
    root = folder(tmp_path, 0)
    for k in (0, 1):
        for d in ("imagesTr", "labelsTr"):
            (root / d / f"amos_000{k}.nii.gz").touch()
    items, said = told(
        root,
        training=[
            dict(image=f"imagesTr/amos_000{k}.nii.gz", label=f"labelsTr/amos_000{k}.nii.gz")
            for k in (0, 1)
        ],
    )
    assert [i.image.name for i in items] == ["amos_0000.nii.gz", "amos_0001.nii.gz"] and not said


def test_paths_elsewhere_are_those_named(tmp_path):
    root = folder(tmp_path, 1)
    other = tmp_path / "other"
    other.mkdir()
    (other / "liver_0.nii.gz").touch()
    (other / "l.nii.gz").touch()
    items, said = told(
        root, training=[dict(image="../other/liver_0.nii.gz", label=str(other / "l.nii.gz"))]
    )
    assert (
        items[0].image.samefile(other / "liver_0.nii.gz")
        and items[0].label == other / "l.nii.gz"
        and said == ["manifest_left_out"]
    )
    items, said = told(
        root,
        dataset={
            "liver_0": dict(images=[str(other / "liver_0.nii.gz")], label=str(other / "l.nii.gz"))
        },
    )
    assert items[0].image == other / "liver_0.nii.gz"


def test_a_folder_a_person(tmp_path):
    root = folder(tmp_path, 0)
    for who in "ab":
        (root / who).mkdir()
        for name in ("ct", "seg"):
            (root / who / f"{name}.nii.gz").touch()
    items, _ = told(
        root, training=[dict(image=f"{who}/ct.nii.gz", label=f"{who}/seg.nii.gz") for who in "ab"]
    )
    assert [i.subject for i in items] == ["a/ct", "b/ct"]
