"The journal: all rows of the two notes, each with a status and with links that lead somewhere."

import re

from conftest import TOP

from medseg.runs.journal import DECIDED, STATUS, broken_links, journal_page, read_journal

ROWS, CONTRADICTIONS = read_journal(TOP)


def test_no_row_is_missing():
    "Counted here once more, not by the library's own list."
    wanted = (
        [f"A{k:02}" for k in range(1, 40)]
        + [f"B{k:02}" for k in range(1, 51)]
        + [f"L{k:02}" for k in range(1, 17)]
    )
    assert [r.id for r in ROWS] == wanted and len(wanted) == 105
    assert all(r.claim and r.says and r.status in STATUS for r in ROWS)


def test_each_link_leads_to_a_test_a_chapter_or_a_run():
    assert not broken_links(ROWS, TOP)
    assert not [r.id for r in ROWS if r.status in DECIDED and not r.see]


def test_what_was_not_run_claims_nothing():
    "A row without a run must not say that something was shown."
    for row in ROWS:
        if row.status == "not run":
            assert not re.search(r"\b(confirmed|proven|shows that)\b", row.says), row


def test_contradictions_are_told():
    told = " ".join(c["what"] + c["told"] for c in CONTRADICTIONS)
    assert all(
        word in told
        for word in ("752", "777", "copies of each other", "updates", "gradient", "millimetres")
    ), told
    page = journal_page(ROWS, CONTRADICTIONS)
    assert page.index("contradictions") < page.index('id="A01"') and all(
        f'<tr id="{r.id}">' in page for r in ROWS
    )


def test_no_decided_row_rests_on_a_rule_that_was_withdrawn():
    """Intervals over three seeds, twins that all agree and trainings broken on purpose decide
    nothing.
    """
    old = (
        r"intervals?\b|bands meet|twins|of three seeds|from every seed|made to collapse|resolves"
        r" nothing"
    )
    assert not [r.id for r in ROWS if r.status in DECIDED and re.search(old, r.says)]


def test_what_was_seen_in_the_notes_trainings_is_not_decided_by_a_test_alone():
    """A sentence about what a training did is decided by a run.

    Tests and chapters can decide only what was to be built or counted.
    """
    seen = [
        r
        for r in ROWS
        if re.search(
            r"better|worse|harder|laminae missing|look alike|the same volume|be paired|no"
            r" diversity|explains",
            r.claim,
        )
    ]
    assert len(seen) == 8
    assert not [
        r.id
        for r in seen
        if r.status in DECIDED and not any(link.startswith("log/") for link in r.see)
    ]


def test_a_contradiction_is_told_among_the_contradictions():
    "And a question is no claim."
    told = " ".join(c["what"] + c["told"] for c in CONTRADICTIONS)
    for row in ROWS:
        if row.status == "contradicted":
            assert re.search(r"\d+", row.claim).group() in told, row
        if row.claim.endswith("?"):
            assert row.status in ("unresolved", "not run"), row
