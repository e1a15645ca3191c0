"""The report page as a whole: structure, honesty, safety, determinism."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import report_runs as runs

from scanprior.console import evaluation_table
from scanprior.errors import RunError
from scanprior.reporting import write_report
from scanprior.reporting.formatting import interval, number

VOID = {"meta", "link", "img", "br", "wbr", "hr", "input"}


class Page(HTMLParser):
    """Checks nesting, and gathers elements, their texts, ids and references."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.elements if name in (attrs.get("class") or "").split()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("runs")
    return {name: make(home / name) for name, make in runs.KINDS.items()}


@pytest.fixture(scope="module")
def html(made: dict[str, Path]) -> dict[str, str]:
    return {
        name: write_report(folder, thumbnails=runs.phantom_thumbnails).read_text(encoding="utf-8")
        for name, folder in made.items()
    }


def evaluations_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted((folder / "evaluations").glob("*.json"))]


@pytest.mark.parametrize("kind", runs.KINDS)
def test_page_is_well_formed_and_self_contained(html: dict[str, str], kind: str) -> None:
    text, page = html[kind], Page(html[kind])
    assert text.startswith("<!DOCTYPE html>")
    assert page.tags["title"] >= 1 and page.tags["main"] == 1 and page.tags["h1"] == 1
    assert page.tags["script"] == 0
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    for tag, attrs in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:", "#")), f"<{tag} {name}={value!r:.80}>"
            if value and value.startswith("#"):
                assert value[1:] in ids
        assert not any(name.startswith("on") for name in attrs)
    assert not re.search(r"url\(|@import", text)
    assert len(text.encode()) < 1_500_000
    for svg in (a for t, a in page.elements if t == "svg" and a.get("role") == "img"):
        assert set((svg["aria-labelledby"] or "").split()) <= set(ids)


@pytest.mark.parametrize("kind", runs.KINDS)
def test_same_input_same_bytes(made: dict[str, Path], tmp_path: Path, kind: str) -> None:
    first = write_report(made[kind], out=tmp_path / "a.html", thumbnails=runs.phantom_thumbnails)
    again = write_report(made[kind], out=tmp_path / "b.html", thumbnails=runs.phantom_thumbnails)
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("kind", ["binary", "four", "multilabel"])
def test_every_metric_interval_and_reason_is_shown(
    made: dict[str, Path], html: dict[str, str], kind: str
) -> None:
    text = Page(html[kind]).text
    checked = 0
    for evaluation in evaluations_in(made[kind]):
        for m in evaluation["metrics"]:
            checked += 1
            if m["value"] is None:
                assert m["reason"] in text
            else:
                assert number(m["value"]) in text
                assert interval(m["low"], m["high"]) in text
            if m["interval"]:
                assert m["interval"] in text
    assert checked > 10


@pytest.mark.parametrize("kind", ["binary", "four", "multilabel"])
def test_a_curve_is_drawn_for_each_class(made: dict[str, Path], html: dict[str, str], kind: str) -> None:
    page = Page(html[kind])
    lines = sum(1 for a in page.of_class("line") if (a.get("d") or "").count("L") > 3)
    expected = sum(len(c) for e in evaluations_in(made[kind]) for c in e["curves"].values())
    logged = set().union(*(json.loads(x) for x in (made[kind] / "metrics.jsonl").read_text().splitlines()))
    training = len(logged - {"step", "epoch", "split"}) + 1  # the loss has two lines
    assert lines == expected + training


def test_statement_and_verdict_are_in_view(html: dict[str, str]) -> None:
    for kind, text in html.items():
        assert Page(text).text.count("Research use only. Not a medical device.") >= 2, kind
    assert re.search(r"\.research \{[^}]*position: sticky", html["binary"])
    assert re.search(
        r"AUROC 0\.9\d \[0\.9\d–0\.9\d\] on 624 images of 312 patients \(test\)", Page(html["binary"]).text
    )
    assert (
        "Pretrained with gmml on 6,518 images for 50 epochs: training loss 0.5" in Page(html["pretrain"]).text
    )


def test_transductive_is_the_first_line(html: dict[str, str]) -> None:
    body = Page(
        html["four"][html["four"].index("<body>") :].removesuffix("</html>\n").removesuffix("</html>")
    )
    assert body.text.strip().startswith("Transductive: ")
    assert "Transductive: " not in Page(html["binary"]).text


def test_leakage_is_reported_as_it_is(made: dict[str, Path], html: dict[str, str], tmp_path: Path) -> None:
    assert "No leakage between splits was found" in Page(html["binary"]).text
    found = Page(html["four"]).text
    assert "Leakage between splits was found" in found and "near-duplicates across splits: 11" in found
    card = json.loads((made["binary"] / "model.json").read_text())
    card["data"]["leakage"] = {"checked": False, "leakage": False}
    (tmp_path / "model.json").write_text(json.dumps(card))
    assert "Leakage between splits was not checked" in Page(write_report(tmp_path).read_text()).text
    card["data"]["leakage"] = {"checked": True, "leakage": False, "near_across": 3}
    (tmp_path / "model.json").write_text(json.dumps(card))
    near = Page(write_report(tmp_path).read_text()).text
    assert (
        "Images that look the same stand in more than one split. (near-duplicates across splits: 3.)" in near
    )
    assert "No leakage" not in near


def test_test_set_comes_first_and_other_site_keeps_its_warnings(html: dict[str, str]) -> None:
    text = Page(html["binary"]).text
    assert text.index("Evaluation: test") < text.index("Evaluation: other-hospital")
    assert "Patients are unknown here" in text
    assert "2 images could not be read and got no score" in text and "truncated PNG" in text
    assert "Fewer than 10 positive or negative images: hernia (0)" in Page(html["multilabel"]).text


def test_left_out_images_split_counts_and_versions(html: dict[str, str]) -> None:
    text = Page(html["binary"]).text
    for wanted in (
        "train/broken 1.png",
        "truncated: 812 of 20,480 bytes",
        "train/<b>renamed</b>.png",
        "4,200",
        "1,030",
        runs.FINGERPRINT,
        "2.14.1",
        "c0ffee0123456789",
        "lr_per_256: 5.0e-4",
        "7 min 12 s",
    ):
        assert wanted in text, wanted


def test_confusion_matrix_holds_the_counts(made: dict[str, Path], html: dict[str, str]) -> None:
    (evaluation,) = evaluations_in(made["four"])
    cells = re.findall(r'<td class="cell[^>]*><b>([\d,]+)</b>', html["four"])
    assert [int(c.replace(",", "")) for c in cells] == np.array(
        evaluation["confusion"]["counts"]
    ).ravel().tolist()


def test_pretraining_shows_curves_and_pictures_in_numeric_order(html: dict[str, str]) -> None:
    text = Page(html["pretrain"]).text
    for title in (
        "Loss",
        "Embedding spread",
        "Learning rate",
        "Weight decay",
        "Images per second",
        "Share of time",
    ):
        assert title in text
    shown = re.findall(r'alt="(epoch_\d+\.png)"', html["pretrain"])
    assert shown == ["epoch_5.png", "epoch_10.png", "epoch_50.png"]
    assert "epoch_9.png" in text  # named, not embedded


EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    classes = ["normal", EVIL]
    card = runs.model_of("classify", classes, notes=[EVIL], parent={"path": EVIL})
    card["task"]["name"] = card["data"]["sources"][0]["name"] = card["encoder"]["name"] = EVIL
    card["data"]["leakage"]["summary"] = EVIL
    folder = runs.write(tmp_path / "run", card, runs.training_log(rng, 30), config=f"a: {EVIL}\n{EVIL}: 1\n")
    log = {"step": 31, "epoch": 1, "split": "train", EVIL: 0.5}
    (folder / "metrics.jsonl").open("a").write(json.dumps(log) + "\n")
    table = runs.multiclass_table(rng, 80, classes, 1.0)
    table["image"] = EVIL
    table["patient"] = EVIL
    table.loc[0, "error"] = EVIL
    for name, positive in (("binary", EVIL), ("both", None)):
        evaluation = runs.evaluation_of(name, table, classes, "multiclass", positive_class=positive)
        evaluation["thresholds"] = {EVIL: {"value": 0.5, "rule": EVIL, "chosen_on": EVIL}}
        evaluation["metrics"].append(runs.metric("f1", EVIL, None, 80, 3, reason=EVIL))
        evaluation["metrics"].append(runs.metric("ece", EVIL, 0.5, 80, 3, how=EVIL))
        runs.add_evaluation(folder, evaluation, table)
    page = Page(write_report(folder, thumbnails=runs.phantom_thumbnails).read_text(encoding="utf-8"))
    assert page.tags["script"] == 0
    assert all("onerror" not in attrs for _, attrs in page.elements)
    assert all((a.get("src") or "").startswith("data:") for t, a in page.elements if t == "img")
    assert page.text.count("<script>alert(1)</script>") > 20


def test_empty_folder_gives_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    for name in ("config.yaml", "model.json", "metrics.jsonl"):
        assert f"{name} is not in the run folder" in text
    assert "Not evaluated yet" in text and "Leakage" not in text


@pytest.mark.parametrize(
    "missing",
    [
        "config.yaml",
        "model.json",
        "metrics.jsonl",
        "evaluations/test.parquet",
        "evaluations/test.json",
        "evaluations/other-hospital.json",
    ],
)
def test_any_file_may_be_missing(tmp_path: Path, missing: str) -> None:
    folder = runs.binary_run(tmp_path / "run")
    (folder / missing).unlink()
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    assert "AUROC" in text
    if missing == "evaluations/test.parquet":
        assert "n/a: the table of predictions for this set is not in the run folder." in text


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = runs.binary_run(tmp_path / "run")
    (folder / "evaluations" / "broken.json").write_text("{")
    (folder / "evaluations" / "list.json").write_text("[1]")
    (folder / "evaluations" / "other-hospital.parquet").write_bytes(b"PAR1 no table")
    (folder / "pictures" / "epoch_1.png").write_bytes(b"no picture")
    (folder / "config.yaml").write_bytes(b"name: \xff\n")
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"step": 9999, "split": "tra')
    written = write_report(folder).read_text(encoding="utf-8")
    text = Page(written).text
    for wanted in (
        "evaluations/broken.json is not valid JSON",
        "evaluations/list.json holds no JSON object",
        "evaluations/other-hospital.parquet is not a readable Parquet table",
        "pictures/epoch_1.png is no readable picture",
        "metrics.jsonl: 1 unreadable line skipped",
    ):
        assert wanted in text, wanted
    assert "on 624 images" in text
    assert written == write_report(folder, out=tmp_path / "again.html").read_text(encoding="utf-8")


def test_predictions_stand_in_for_the_tables_of_the_own_split(tmp_path: Path) -> None:
    folder = runs.four_class_run(tmp_path / "run")
    with_table = write_report(folder, out=tmp_path / "a.html").read_text()
    table = folder / "evaluations" / "test.parquet"
    both = pd.concat([pd.read_parquet(table), pd.read_parquet(table).assign(split="val", label="normal")])
    both.to_parquet(folder / "predictions.parquet")
    table.unlink()
    without = write_report(folder, out=tmp_path / "b.html").read_text()
    cases = re.compile(r'<ol class="cases">.*?</ol>', re.S)
    assert cases.findall(with_table) == cases.findall(without) != []


def test_careless_protocols_are_called_out(tmp_path: Path) -> None:
    folder = runs.binary_run(tmp_path / "run")
    path = folder / "evaluations" / "test.json"
    evaluation = json.loads(path.read_text())
    evaluation["thresholds"]["pneumonia"]["chosen_on"] = "test"
    path.write_text(json.dumps(evaluation))
    (folder / "evaluations" / "val.json").write_text(json.dumps(evaluation | {"name": "val", "split": "val"}))
    text = Page(write_report(folder).read_text()).text
    assert "Thresholds were chosen on this very set (pneumonia)" in text
    assert "This is the val split: the model was selected on it" in text
    assert text.index("Evaluation: other-hospital") < text.index("Evaluation: val")


def test_undefined_headline_is_na_with_its_reason(tmp_path: Path) -> None:
    folder = runs.write(tmp_path / "run", None, [])
    reason = "n/a because the set has no negative image"
    (folder / "evaluations" / "site.json").write_text(
        json.dumps(
            {
                "name": "site",
                "task": "multiclass",
                "classes": ["a", "b"],
                "positive_class": "b",
                "n": 5,
                "split": None,
                "metrics": [runs.metric("auroc", "b", None, 5, 5, reason=reason)],
            }
        )
    )
    assert (
        "AUROC n/a (because the set has no negative image) on 5 images (site)"
        in Page(write_report(folder).read_text()).text
    )


def test_errors_name_the_folder_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere is no run folder; give the folder"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "model.json").write_text('{"format": 2}')
    with pytest.raises(RunError, match=r"format 2, this version reads up to 1; update"):
        write_report(tmp_path)
    (tmp_path / "model.json").unlink()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written"):
        write_report(tmp_path, out=tmp_path / "file" / "report.html")


def test_wrong_number_of_thumbnails_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 arrays for 10 images"):
        write_report(made["binary"], out=tmp_path / "r.html", thumbnails=lambda _: [None])


def test_intervals_are_called_by_their_level(tmp_path: Path) -> None:
    folder = runs.four_class_run(tmp_path / "run")
    assert "95 %" in Page(write_report(folder).read_text(encoding="utf-8")).text
    for file in (folder / "evaluations").glob("*.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "level": 0.9}))
    said = Page(write_report(folder).read_text(encoding="utf-8")).text
    assert "90 % interval" in said and "95 %" not in said
    heads = [str(column.header) for column in evaluation_table(evaluations_in(folder)[0]).columns]
    assert "90 % interval" in heads  # on the terminal too
