"""The z verdict on collections as they come: mixed anatomy, copies, liars, small and clumsy sets.

Rows are made up, as `survey` and `measure` would give them, so that the truth is known and many
collections can be tried.
"""

from collections import Counter

import numpy as np
import pytest
from medseg.zdepth.content import content_of
from medseg.zdepth.coverage import plot_coverage
from medseg.zdepth.equivalence import MARGIN
from medseg.zdepth.survey import survey
from medseg.zdepth.trend import one_each, slope
from medseg.io.volume import Volume
from medseg.io.write import write_volume
from medseg.zdepth.verdict import depth_shares, z_verdict


def collection(scans: list[dict]) -> tuple:
    """Survey table and content of made-up scans.

    Each has mm (between slices, by the header) and true (how far they are apart; mm if not
    given); cover (mm), pixel (mm, by the header),
    size (mm across, of the body), look (what content misjudges: the logarithm), kind, flags and
    voxels.
    """
    volumes, content = [], {}
    for k, s in enumerate(scans):
        path, mm, pixel = f"{k:03d}.nii.gz", s["mm"], s.get("pixel", 0.8)
        right, true = s.get("right", 0.8), s.get("true", mm)
        depth, size = int(s.get("cover", 300) / true), s.get("size", 280.0) * pixel / right
        ct, whole = s.get("kind", (True, True))
        gap = float(np.log(true / right) - np.log(mm / pixel) + s.get("look", 0.0))
        ratio = mm / pixel * np.exp(gap)
        volumes.append(
            dict(
                path=path,
                shape=(512, 512, depth),
                spacing=(pixel, pixel, mm),
                axcodes="RAS",
                thickness_mm=None,
                dtype="int16",
                modality=None,
                extent_mm=(512 * pixel, 512 * pixel, depth * mm),
                flags=s.get("flags", ()),
            )
        )
        content[path] = dict(
            path=path,
            why="",
            ct=ct,
            whole=whole,
            axis=2,
            ratio=ratio,
            gap=gap,
            spread=0.16 if whole else 0.37,
            low=ratio * 0.7,
            high=ratio * 1.4,
            across_mm=size if whole else None,
            seen_mm=size,
            z20_mm=20 * np.exp(-gap),
            organs={},
            orientation=s.get("ways", {}),
            voxels=s.get("voxels", path),
        )
    return dict(volumes=volumes, refused=[]), content


def trunks(pick, n: int = 30, power: float = 0.0, differ: float = 0.1, mm=(1, 8)) -> list[dict]:
    "Scans of trunks whose size along z goes with the spacing of the header to a power."
    spacings = np.exp(pick.uniform(*np.log(mm), n))
    return [
        dict(
            mm=float(s),
            cover=pick.uniform(200, 400),
            size=280 * np.exp(pick.normal(0, 0.08)),
            look=float(-power * np.log(s / 3) + pick.normal(0, differ)),
        )
        for s in spacings
    ]


def limbs(pick, n: int = 26) -> list[dict]:
    """Thighs, arms and pelvises with right headers, as measured on 26 real ones.

    Content misjudges them by up to 4.
    """
    rows = [
        dict(
            mm=3.27,
            pixel=1.95,
            right=1.95,
            cover=pick.uniform(150, 250),
            size=130 * np.exp(pick.normal(0, 0.19)),
            kind=(True, False),
            look=float(np.clip(pick.choice([0.25, -0.8]) + pick.normal(0, 0.25), -1.4, 0.5)),
        )
        for _ in range(n)
    ]
    # small enough to be whole
    for row in rows[:2]:
        row |= dict(kind=(True, True), size=104.0, ways=dict(back="contradicts"))
    return rows


def thicker(rows: list[dict]) -> list[dict]:
    "Every second scan with pairs of slices averaged."
    return [row | dict(mm=row["mm"] * (1 + k % 2)) for k, row in enumerate(rows)]


def lost(row: dict) -> dict:
    "The scan with the identity for a header."
    return row | dict(
        mm=1.0, pixel=1.0, true=row.get("true", row["mm"]), flags=("identity_affine",)
    )


def said(rows: list[dict]) -> tuple:  # answer, numbers of the named scans
    verdict = z_verdict(*collection(rows))
    return verdict["answer"], {int(liar["path"][:3]) for liar in verdict["liars"]}


@pytest.mark.parametrize("differ", (0.04, 0.12))
def test_the_curve_of_answers(differ):
    """Thirty scans, fifty collections a slope.

    Never 'same' beyond the margin, never 'changes' inside it, in more than 5 %.
    """
    for power in (0, 0.1, 0.2, 0.45, 0.6, 1):
        answers = Counter()
        for seed in range(50):
            rows = trunks(np.random.default_rng([seed, int(100 * power)]), 30, power, differ)
            verdict = z_verdict(*collection(rows))
            answers[verdict["answer"]] += 1
            s = verdict["slopes"]["z_size_on_spacing"]
            if verdict["answer"] == "same_scale_in_mm":
                assert -MARGIN <= s["low"] and s["high"] <= MARGIN
        assert answers["same_scale_in_mm" if power > MARGIN else "scale_changes"] <= 2, (
            power,
            answers,
        )
        if power in (0, 1):
            assert answers["scale_changes" if power else "same_scale_in_mm"] >= 45, (power, answers)


def test_a_tight_slope_of_0_443_is_not_the_same():
    "The reported case: a factor of 2.5 from 1 to 8 mm."
    verdict = z_verdict(*collection(trunks(np.random.default_rng(0), 30, 0.443, 0.03)))
    assert (
        verdict["answer"] == "scale_changes"
        and "to the power 0.4" in verdict["words"]
        and "do not go with" not in verdict["words"]
    )


def test_sound_headers_of_mixed_anatomy_are_never_accused():
    """Limbs and pelvises as they are, thickened in part, with spacing that goes with anatomy, mixed
    with trunks or with MR.
    """
    for seed in range(20):
        rows = limbs(np.random.default_rng(seed))
        confounded = [row | dict(mm=6.54 if row["look"] < -0.3 else 3.27) for row in rows]
        mr = [row | dict(kind=(False, False)) for row in thicker(rows)]
        mixed = rows[:13] + trunks(np.random.default_rng(seed), 9) + mr[:8]
        for some in (rows, thicker(rows), confounded, mr, mixed, rows[:8], rows[:3]):
            verdict = z_verdict(*collection(some))
            assert (verdict["answer"], verdict["liars"], verdict["changes"]) == (
                "cannot_tell",
                [],
                [],
            ), verdict["words"]
            assert len(some) < 8 or "one anatomy" in verdict["words"]


def test_identities_among_limbs_are_named():
    """Five identity affines among 26, in CT and in MR, and one of them alone.

    Named, and nobody else.
    """
    for seed in range(20):
        pick = np.random.default_rng(seed)
        for rows in (
            limbs(pick),
            thicker(limbs(pick)),
            [row | dict(kind=(False, False)) for row in limbs(pick)],
        ):
            for n in (1, 5):
                who = set(pick.choice(26, n, replace=False).tolist())
                assert said([lost(row) if k in who else row for k, row in enumerate(rows)]) == (
                    "header_not_trustworthy",
                    who,
                )


@pytest.mark.parametrize(
    "wrong",
    (
        dict(pixel=8.0),
        dict(pixel=0.08),
        dict(pixel=0.08, by=0.1),
        dict(pixel=0.0008, by=0.001),
        dict(by=4),
    ),
    ids=str,
)
def test_one_liar_of_thirty_leaves_before_the_set_is_judged(wrong):
    """Pixels wrong by ten, centimetres, metres, spacing wrong by four.

    The one is named, and the rest have one scale.
    """
    for seed in range(5):
        rows = trunks(np.random.default_rng(seed), 30)
        rows[7] |= dict(true=rows[7]["mm"], mm=rows[7]["mm"] * wrong.get("by", 1)) | {
            k: v for k, v in wrong.items() if k == "pixel"
        }
        verdict = z_verdict(*collection(rows))
        assert (verdict["answer"], [liar["path"] for liar in verdict["liars"]]) == (
            "header_not_trustworthy",
            ["007.nii.gz"],
        ), verdict["words"]
        assert "The other 29 have the same scale" in verdict["words"]


def test_sets_of_liars_only():
    "All in centimetres, all identities: not one number of such a set may be used."
    rows = trunks(np.random.default_rng(0), 20)
    assert (
        len(said([row | dict(mm=row["mm"] / 10, true=row["mm"], pixel=0.08) for row in rows])[1])
        == 20
    )
    verdict = z_verdict(*collection([lost(row) for row in rows]))
    assert (
        verdict["answer"] in ("header_not_trustworthy", "scale_changes")
        and "20 of 20 headers state neither" in verdict["words"]
    )


def test_resized_in_part_is_not_called_the_same():
    "Kept headers after a resize to 100 slices: all scans, or every second one."
    for seed in range(20):
        rows = trunks(np.random.default_rng(seed), 30)

        def resized(row):
            return row | dict(true=row["cover"] / 100)

        assert said([resized(row) for row in rows])[0] == "scale_changes"
        verdict = z_verdict(
            *collection([resized(row) if k % 2 else row for k, row in enumerate(rows)])
        )
        assert verdict["answer"] in ("scale_changes", "header_not_trustworthy"), verdict["words"]
        assert (
            verdict["answer"] == "scale_changes" or "cannot be told" in verdict["words"]
        ), verdict["words"]


def test_eight_scans_and_spacings_that_do_not_vary():
    """Eight scans that leave an interval over the margin cannot tell, and say how many would.

    One spacing says what was not asked.
    """
    few = z_verdict(*collection(trunks(np.random.default_rng(4), 8, differ=0.15, mm=(2, 4))))
    assert (
        few["answer"] == "cannot_tell"
        and "scans like these" in few["words"]
        and few["power"]["same"] < 0.5
    )
    one = z_verdict(*collection(trunks(np.random.default_rng(1), 20, mm=(5, 5))))
    assert (
        one["answer"] == "same_scale_in_mm"
        and "spacing does not vary" in one["words"]
        and one["power"] is None
    )
    # a slope that would be one scan
    lone = trunks(np.random.default_rng(1), 20, mm=(5, 5))
    lone[3]["mm"] = 2.5
    assert z_verdict(*collection(lone))["slopes"]["z_size_on_spacing"] is None


def test_three_copies_are_one_scan():
    "Copies are counted once and told, and do not make few scans enough."
    rows = trunks(np.random.default_rng(0), 5)
    verdict = z_verdict(
        *collection([row | dict(voxels=str(k)) for k, row in enumerate(rows) for _ in range(3)])
    )
    assert (
        verdict["answer"] == "cannot_tell" and "at least 8 scans; there are 5" in verdict["words"]
    )
    assert len(verdict["copies"]) == 10 and "10 of 15 scans are copies" in verdict["words"]


def test_copies_in_other_formats_are_found(tmp_path):
    "NIfTI, NRRD-like types and folders: what counts is the voxels."
    pick = np.random.default_rng(0)
    for k in range(2):
        v = Volume(
            pick.integers(-1000, 500, (30, 30, 12)).astype(np.int16), np.diag([1.0, 1.0, 3.0, 1.0])
        )
        write_volume(tmp_path / f"a{k}.nii.gz", v)
        if k == 0:
            (tmp_path / "again").mkdir()
            write_volume(tmp_path / "again" / "b.nii", v)
            write_volume(tmp_path / "c.nii.gz", Volume(v.voxels.astype(np.float32), v.affine))
    found = survey(tmp_path)
    verdict = z_verdict(found, content_of(found))
    assert len(verdict["copies"]) == 2 and "2 of 4 scans are copies of others" in verdict["words"]
    assert "were counted each" in z_verdict(found)["words"]


def test_shares_are_printed_as_they_are():
    "An interval that leaves 0 to 100 % is never cut, and one as wide as the question is not told."
    assert depth_shares([1, 2], [300, 280])["spacing"]["low"] is None
    pick = np.random.default_rng(3)
    for seed in range(30):
        rows = trunks(np.random.default_rng(seed), int(pick.integers(2, 12)))
        verdict = z_verdict(collection(rows)[0])
        s = verdict["shares"]["spacing"]
        if not s or s["low"] is None:
            continue
        assert f"({round(100*s['low'])}% to {round(100*s['high'])}%)" in verdict["words"]
        if s["high"] - s["low"] > 0.8:
            assert "cannot be told" in verdict["words"]


@pytest.mark.parametrize("n", (8, 12, 30))
@pytest.mark.parametrize("tails", (0, 3))
def test_intervals_hold(n, tails):
    """95 % intervals of slopes hold in 93 of 100 or more, at 8, 12 and 30 scans, with heavy tails
    too, and where six organs of a patient are measured.
    """
    pick, held, organs = np.random.default_rng([n, tails]), [], []
    for _ in range(400):
        mm = np.exp(pick.uniform(0, np.log(8), n))
        noise = 0.1 * (pick.standard_t(tails, n) if tails else pick.normal(size=n))
        s = slope(mm, np.exp(noise))
        held.append(s["low"] <= 0 <= s["high"])
        s = slope(
            mm,
            one_each(
                [{organ: np.exp(x + pick.normal(0, 0.03)) for organ in range(6)} for x in noise]
            ),
        )
        organs.append(s["low"] <= 0 <= s["high"])
    assert np.mean(held) > 0.93 and np.mean(organs) > 0.93


def test_a_figure_shows_all_labels_or_says_how_many_it_leaves_out():
    "30 labels are all drawn; of 200 the figure says what is missing."
    for n, left in ((30, 0), (200, 80)):
        rows = [dict(path="a", label=k, ml=1.0, height_mm=10.0, cut="") for k in range(1, n + 1)]
        fig = plot_coverage(dict(rows=rows, scans=1))
        assert len(fig.axes[0].get_yticklabels()) == n - left
        words = " ".join(t.get_text() for t in fig.texts) + (fig.get_suptitle() or "")
        assert (f"{left} " in words and "left out" in words) == bool(left)
