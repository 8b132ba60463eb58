"""The list of odd inputs of the book.

Each is refused in one line, mended with one warning or accepted in silence, in less than a
second and 64 MB.
"""

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from limits import small
from awkward import make_awkward, run_case
from oddfile import CLASSES, PLACE, SCAN, Odd, label_cases
from oddseries import format_cases
from peers import verdict

from medseg.io.files import InputError, RepairWarning
from medseg.io.check import check_path, check_pair
from medseg.io.read import read_header, read_volume
from medseg.zdepth.survey import survey


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return make_awkward(tmp_path_factory.mktemp("odd"))


def open_case(case):
    "Read a case as a program would; the codes of the warnings."
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        image = read_volume(case.path)
        if case.label:
            check_pair(image, read_volume(case.label, "labels"), CLASSES, (case.path, case.label))
    assert all(w.category is RepairWarning for w in heard), [str(w.message) for w in heard]
    return [",".join(w.message.codes) for w in heard]


def test_there_are_enough_of_each(cases):
    count = Counter(c.expected for c in cases)
    assert (
        len(cases) >= 100
        and count["refuse"] >= 60
        and count["repair"] >= 10
        and count["accept"] >= 10
    )
    assert len({c.kind for c in cases}) == len(cases)


def test_each_behaves_and_costs_little(cases):
    for case in cases:  # once without a limit, so that every library is loaded
        if case.expected == "accept":
            run_case(case)
    wrong = []
    for case in cases:
        with small(1, 64):
            row = run_case(case)
        if not row["right"]:
            wrong.append((case.kind, row))
    assert not wrong


def test_a_program_sees_the_same_as_the_command(cases):
    for case in cases:
        if case.expected == "refuse":
            with pytest.raises(InputError) as caught:
                open_case(case)
            assert caught.value.code == case.code, case.kind
        else:
            assert open_case(case) == [case.code] * (case.expected == "repair"), case.kind


def test_a_name_in_a_header_is_told_once_and_only_where_it_stands(cases):
    case = next(c for c in cases if c.kind == "name_in_header")
    assert open_case(case) == ["header_text"] and "header_text" in read_header(case.path).flags
    row = check_path(case.path)
    assert (row["status"], row["code"]) == ("repaired", "header_text") and "JANE" not in str(row)


def test_the_survey_lives_through_all_of_them(cases, tmp_path):
    table = survey(cases[0].path.parents[1])
    assert "unexpected" not in [row["code"] for row in table["refused"]]
    good = {str(c.path) for c in cases if c.expected == "accept"}
    missing = good - {row["path"] for row in table["volumes"]}
    assert all("enhanced" in p or "IM0" in p for p in missing), missing


def test_a_good_file_of_each_format_holds_the_toy_scan(tmp_path):
    for case in format_cases(tmp_path):
        if case.expected == "accept":
            found = read_volume(case.path)
            assert np.array_equal(found.voxels, SCAN) and np.array_equal(found.affine, PLACE)
        if case.kind == "mhd_outside":
            with pytest.raises(InputError, match="needs one file in the same folder"):
                read_volume(case.path)


def test_cases_are_never_made_over_others(tmp_path):
    label_cases(tmp_path)
    with pytest.raises(FileExistsError):
        label_cases(tmp_path)


def test_verdicts_on_other_readers():
    case = Odd(Path("/d/cut/scan.nii.gz"), None, "cut", "refuse", "gzip_truncated")
    for wanted, how in dict(
        clear=("scan.nii.gz: stream is truncated",),
        cryptic=("stream is truncated",),
        memory=("MemoryError", "", True),
        warned=(None, "truncated?"),
        vague=(None, "oops"),
        silent=(None,),
    ).items():
        assert verdict(case, *how) == wanted
    assert verdict(case._replace(expected="accept"), "no") == "false alarm"
