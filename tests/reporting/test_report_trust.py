"""What the page says of a run's own limits: what was fitted, what was measured, and where it does not hold."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import report_runs as runs

from scanprior.reporting import write_report
from scanprior.reporting.trust import (
    measured_sentences,
    measured_table,
    outliers_table,
    sets_table,
    trust_facts,
    trust_notes,
    trust_sentences,
    trust_warnings,
)

EVIL = "<script>alert(1)</script>"


def threshold(level: float = 0.9) -> dict[str, Any]:
    return {"method": "lac", "level": level, "thresholds": [0.7], "units": [90], "randomised": False}


def card(findings: int = 1) -> dict[str, Any]:
    return {
        "trust": {
            "temperature": {"value": 1.43, "images": 1030, "log_loss": [0.412, 0.377]},
            "sets": {"kind": "multiclass", "thresholds": [threshold() for _ in range(findings)]},
            "outliers": {
                "score": "mahalanobis", "false_alarms": 0.05, "threshold": 2.5, "reference_images": 2000,
                "validation_images": 1030,
            },
            "notes": [],
        }
    }  # fmt: skip


def held(
    of: str, value: float | None, low: float | None, high: float | None, site: str | None = None
) -> dict[str, Any]:
    return {
        "of": of, "site": site, "coverage": value, "low": low, "high": high, "interval": "exact", "n": 100,
        "mean_size": None if value is None else 1.25, "singletons": None if value is None else 0.75, "empty": 0.0,
        "reason": "n/a because there is no such image" if value is None else None,
    }  # fmt: skip


def flagged(share: float, low: float, high: float, site: str | None = None) -> dict[str, Any]:
    return {
        "site": site,
        "share": share,
        "low": low,
        "high": high,
        "interval": "exact",
        "n": 50,
        "reason": None,
    }


def evaluation(name: str = "test", **kept: Any) -> dict[str, Any]:
    return {
        "name": name,
        "task": "multiclass",
        "split": "test",
        "data": None,
        "level": 0.95,
        "n": 100,
        **kept,
    }


GOOD = evaluation(sets=[held("all", 0.91, 0.84, 0.96)], outliers=[flagged(0.06, 0.02, 0.12)])
ELSEWHERE = evaluation(
    "elsewhere", split=None, data="elsewhere.csv",
    sets=[held("all", 0.72, 0.61, 0.81), held("benign", 0.2, 0.1, 0.3), held("all", 0.6, 0.4, 0.8, "B")],
    outliers=[flagged(0.5, 0.43, 0.57), flagged(0.01, 0.0, 0.05, "A"), flagged(0.99, 0.95, 1.0, "B")],
)  # fmt: skip


def page_of(folder: Path) -> str:
    text = write_report(folder).read_text(encoding="utf-8")
    return re.sub(
        r"\s+",
        " ",
        re.sub(r"</(td|th|dt|p)>|<[^>]+>", lambda tag: " " if tag[1] else "", text[text.index("<body>") :]),
    )


def with_trust(folder: Path, trust: object, **sections: Any) -> Path:
    """Give a made run a section of its card, and its evaluations what was measured."""
    runs.binary_run(folder)
    kept = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**kept, "trust": trust}))
    for file in (folder / "evaluations").glob("*.json"):
        file.write_text(
            json.dumps({**json.loads(file.read_text()), **sections.get(file.stem.replace("-", "_"), {})})
        )
    return folder


def test_the_page_puts_what_was_measured_beside_what_is_wanted(tmp_path: Path) -> None:
    sections = {
        "test": {"sets": GOOD["sets"], "outliers": GOOD["outliers"]},
        "other_hospital": {k: ELSEWHERE[k] for k in ("sets", "outliers", "data")},
    }
    text = page_of(with_trust(tmp_path / "run", card()["trust"], **sections))
    said = text[text.rindex("When not to rely on it") :]
    for wanted in (
        "1.43 (log loss 0.412 to 0.377, on the 1,030 validation images it was fitted to)",
        "90% are to hold the truth; least ambiguous sets",
        "flagged above a score of 2.50, as at most 5% of 1,030 validation images are",
        "Coverage (90% wanted)",
        "0.910 [0.840–0.960] 1.25 0.060 [0.020–0.120]",
        "0.720 [0.610–0.810] 1.25 0.500 [0.430–0.570]",
        "other-hospital: sets held the truth less often than wanted, 0.720 [0.610–0.810] against 90%",
        "other-hospital: a share of 0.500 [0.430–0.570] of the images is called outliers, more than the 5%",
    ):
        assert wanted in said, wanted
    assert "test: sets held" not in said and "test: a share" not in said
    own = text[text.rindex("Evaluation: test") : text.rindex("Evaluation: other-hospital")]
    assert "Conformal sets" in own and "Images unlike the training" not in own
    other = text[text.rindex("Evaluation: other-hospital") : text.rindex("When not to rely on it")]
    assert "B 50 0.990 [0.950–1.000]" in other and "benign all 100 0.200 [0.100–0.300]" in other


@pytest.mark.parametrize("trust", [None, {}, {"notes": []}])
def test_a_run_of_before_has_a_page_without_it(tmp_path: Path, trust: object) -> None:
    text = page_of(with_trust(tmp_path / "run", trust))
    assert "AUROC" in text and "When not to rely on it" not in text and "Conformal" not in text


def test_why_something_is_missing_is_said(tmp_path: Path) -> None:
    trust = {
        "temperature": None,
        "sets": None,
        "outliers": None,
        "notes": ["12 labelled images: too few", EVIL],
    }
    text = page_of(with_trust(tmp_path / "run", trust))
    assert "12 labelled images: too few" in text
    assert "<script" not in (tmp_path / "run" / "report.html").read_text()
    assert list(trust_sentences({"trust": trust})) == ["12 labelled images: too few.", f"{EVIL}."]


def test_outliers_without_a_threshold_and_segmentation_runs() -> None:
    kept = card()["trust"]["outliers"]
    masks = {"trust": {"outliers": kept, "notes": []}}
    assert [name for name, _ in trust_facts(masks)] == ["Outliers"] and trust_notes(masks) == []
    none = {"trust": {"outliers": {**kept, "threshold": None}}}
    assert trust_facts(none) == [("Outliers", "scored against 2,000 training images; none is flagged")]


def test_warnings_need_the_whole_interval_and_look_at_what_is_promised() -> None:
    """Coverage is promised of all images together, or of each finding; not of a class, nor of a site."""
    assert list(trust_warnings(card(), [GOOD])) == []
    wide = evaluation(sets=[held("all", 0.8, 0.6, 0.9)], outliers=[flagged(0.2, 0.05, 0.4)])
    assert list(trust_warnings(card(), [wide])) == []
    found = list(trust_warnings(card(), [ELSEWHERE]))
    assert len(found) == 2 and not any("benign" in text or "0.600" in text for text in found)
    lacking = evaluation(sets=[held("all", 0.95, 0.9, 0.99), held("benign", 0.2, 0.1, 0.3)])
    assert list(trust_warnings(card(), [lacking])) == []
    findings = evaluation(
        task="multilabel",
        sets=[held("mass", 0.7, 0.6, 0.8), held("edema", 0.9, 0.8, 0.95), held("hernia", None, None, None)],
    )
    (text,) = trust_warnings(card(3), [findings])
    assert "sets of mass held" in text
    assert list(trust_warnings({}, [ELSEWHERE, findings])) == []


def test_of_findings_the_lowest_and_the_highest_are_named() -> None:
    findings = evaluation(
        task="multilabel",
        sets=[
            held("mass", 0.93, 0.9, 0.95),
            held("edema", 0.81, 0.7, 0.92),
            held("hernia", None, None, None),
        ],
    )
    table = measured_table(card(3), [findings])
    assert table is not None
    assert table.rows == [["test", "100", "0.810 (edema) to 0.930 (mass)", "by finding", "1.25"]]
    each = sets_table(findings)
    assert each is not None and each.rows[2][2:4] == [
        "n/a because there is no such image",
        "n/a because there is no such image",
    ]


def test_sets_with_images_that_were_fitted_to_are_marked() -> None:
    val = evaluation("val", split="val", sets=GOOD["sets"])
    seen = evaluation("again", split=None, data="again.csv", training_images=3, sets=GOOD["sets"])
    table = measured_table(card(), [GOOD, ELSEWHERE, val, seen])
    assert table is not None and [row[0] for row in table.rows] == ["test", "elsewhere", "val *", "again *"]
    assert "*: holds images" in table.caption
    assert [row[5:] for row in table.rows][2:] == [["n/a", "n/a"]] * 2
    clean = measured_table(card(), [GOOD])
    assert clean is not None and "*" not in clean.caption
    said = list(measured_sentences(card(), [GOOD, val]))
    assert said[0] == (
        "test: conformal sets held the truth of 0.910 [0.840–0.960] (90% wanted), classes in a set: 1.25; "
        "called outliers: 0.060 [0.020–0.120]."
    )
    assert said[1].startswith("val (holds images that it was fitted to, or trained on): ")


def test_where_nothing_was_measured_there_is_no_table() -> None:
    assert measured_table(card(), [evaluation(), evaluation(sets=[], outliers=None)]) is None
    assert sets_table(evaluation()) is None and outliers_table(GOOD) is None
    assert list(measured_sentences(card(), [evaluation()])) == []


def test_what_is_no_row_or_no_number_ends_no_page(tmp_path: Path) -> None:
    broken = {
        "sets": [None, {}, held(EVIL, float("nan"), None, None, EVIL)],
        "outliers": ["x", {"share": None}, {}],
    }
    trust = copy.deepcopy(card()["trust"])
    trust["sets"]["thresholds"][0] = {"level": "high"}
    trust["temperature"] = {"value": None}
    text = page_of(with_trust(tmp_path / "run", trust, test=broken))
    assert "When not to rely on it" in text and "AUROC" in text
    assert "<script" not in (tmp_path / "run" / "report.html").read_text()
