"All odd inputs in one list, and what our reader does with each."

from pathlib import Path

from medseg.io.check import check_path
from oddfile import CLASSES, Odd, container_cases, header_cases, label_cases, voxel_cases
from oddseries import format_cases, series_cases


def make_awkward(folder: str | Path) -> list[Odd]:
    """Bad and odd inputs of every kind, and what a reader should do with each.

    Parameters
    ----------
    folder
        gets one folder a case, which must not be there yet

    Returns
    -------
    list[Odd]
        path, label or None, kind, expected ("refuse", "repair" or "accept"), code
    """
    makers = (container_cases, header_cases, voxel_cases, label_cases, series_cases, format_cases)
    return [case for make in makers for case in make(Path(folder))]


def run_case(case: Odd) -> dict:
    """What our reader does with a case.

    Returns
    -------
    dict
        status ("ok", "repaired" or "refused"), code, message, right (True if it is what the
        case asks)
    """
    row = check_path(case.path, case.label, CLASSES if case.label else None)
    wanted = dict(refuse="refused", repair="repaired", accept="ok")[case.expected]
    named = (
        case.expected == "accept"
        or case.path.name in row["message"]
        or (case.label is not None and case.label.name in row["message"])
    )
    whole = case.expected != "refuse" or all(
        part in row["message"] for part in (": found ", "; needs ", "; do ")
    )
    one = row["message"].isprintable() and len(row["message"].splitlines()) <= 1
    return row | dict(
        right=(row["status"], row["code"]) == (wanted, case.code) and named and whole and one
    )
