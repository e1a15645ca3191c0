"""The benchmark scripts run, compare equal work, and say what they found; no time is asserted."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import NAMES, __main__, measure
from benchmarks.measure import Cost, Row, Settings, Side


def test_every_benchmark_is_listed() -> None:
    folder = Path(measure.__file__).parent
    found = {path.stem for path in folder.glob("*.py") if "\ndef run(settings" in path.read_text()}
    assert found == set(NAMES)


def test_sides_take_turns_and_warm_up_does_not_count() -> None:
    calls: list[str] = []
    taken = measure.in_turns(lambda: calls.append("a"), lambda: calls.append("b"), 2, warm_up=1)
    assert calls == ["a", "b"] * 3
    assert [len(side) for side in taken] == [2, 2]


@pytest.mark.parametrize(
    ("unit", "ours", "reference"),
    [("s", [1.0, 2.0, 3.0], [8.0, 4.0, 9.0]), ("images/s", [8, 4, 9], [1, 2, 3])],
)
def test_ratio_is_the_median_of_pairs_above_one_where_we_are_faster(
    unit: str, ours: list[float], reference: list[float]
) -> None:
    row = measure.speed_row("work", Side("a", unit, ours), Side("b", unit, reference), target=3.0)
    assert row.value == 3.0  # of 8, 2, 3; the ratio of the medians would be 4
    assert row.spread == (2.0, 8.0)
    assert row.met


def test_target_of_a_limit_is_met_from_below() -> None:
    assert Row("peak", 1.05, target=1.1, sense="<=").met
    assert Row("peak", 1.2, target=1.1, sense="<=").met is False
    assert Row("skipped", None, target=1.0).met is None


def test_cost_of_a_process_is_its_own() -> None:
    ballast = bytearray(200_000_000)  # resident here, and no part of the child
    ballast[::4096] = b"x" * len(ballast[::4096])
    small = measure.cost([sys.executable, "-c", "pass"])
    large = measure.cost([sys.executable, "-c", "x = b'x' * 80_000_000"])
    assert small.peak_mb < 60
    assert 70 < large.peak_mb - small.peak_mb < 100
    assert small.cpu > 0


def test_cost_of_a_failed_process_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        measure.cost([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_equal_work_is_checked() -> None:
    from benchmarks.bare import check_same

    check_same("equal", lambda: torch.tensor(2.0), lambda: torch.tensor(2.0))
    with pytest.raises(AssertionError, match="no comparison"):
        check_same("other", lambda: torch.tensor(2.0), lambda: torch.tensor(2.1))


@pytest.mark.parametrize(
    "name",
    [
        "startup",
        "reading",
        "corruption",
        "drifts",
        "bootstrap",
        "surfaces",
        "mae_step",
        "guidance",
        "finetuning",
        "segmentation",
        "studies",
        "export",
    ],
)
def test_benchmark_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANPRIOR_CACHE", str(tmp_path / "cache"))
    rows = importlib.import_module(f"benchmarks.{name}").run(Settings(tmp_path, quick=True, threads=1))
    assert rows
    for row in rows:
        assert row.value is not None or row.note.startswith("skipped")
        json.dumps(row.to_dict())


def test_pretraining_benchmark_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One objective stands for both, without workers; the losses are compared on the way."""
    from benchmarks import pretraining

    monkeypatch.setenv("SCANPRIOR_CACHE", str(tmp_path / "cache"))
    small = {"encoder.depth": 1, "objective.decoder_dim": 32, "objective.decoder_depth": 1}
    monkeypatch.setitem(pretraining._OWN, "mae", {**small, "objective.decoder_heads": 2})
    monkeypatch.delitem(pretraining._OWN, "gmml")
    monkeypatch.setattr(pretraining, "_WORKERS", (0,))
    (row,) = pretraining.run(Settings(tmp_path, quick=True, threads=1))
    assert row.ours is not None and row.reference is not None
    assert len(row.ours.repeats) == len(row.reference.repeats) == 1


def test_masked_convnext_benchmark_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its child processes here: the same script, whose peak is made up."""
    from benchmarks import masked_convnext

    peaks = iter([100.0, 200.0])

    def in_process(command: list[str], **_: str) -> Cost:
        monkeypatch.setattr(sys, "argv", ["-c", *command[3:]])
        exec(command[2], {})
        return Cost(0.0, next(peaks))

    monkeypatch.setattr(masked_convnext, "cost", in_process)
    speed, memory = masked_convnext.run(Settings(tmp_path, quick=True, threads=1))
    assert speed.value is not None and speed.details["largest_difference"] < 1e-5
    assert memory.value == pytest.approx(0.5) and memory.met


def test_selective_scan_benchmark_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its child processes here: the same script, whose peaks are made up."""
    from benchmarks import selective_scan

    peaks, sides = iter([100.0, 150.0, 290.0]), []

    def in_process(command: list[str], **_: str) -> Cost:
        monkeypatch.setattr(sys, "argv", ["-c", *command[3:]])
        sides.append(command[5])
        exec(command[2], {})
        return Cost(0.0, next(peaks))

    monkeypatch.setattr(selective_scan, "cost", in_process)
    defined, unbound, swin, memory = selective_scan.run(Settings(tmp_path, quick=True, threads=1))
    assert defined.target == 5 and defined.details["largest_difference"] < 1e-4
    assert unbound.met is None and unbound.details["largest_difference"] < 1e-4
    assert swin.value is not None and swin.sense == "<="
    assert memory.value == pytest.approx(3.8) and memory.met and sides == ["32", "32", "64"]


def test_unequal_scans_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import selective_scan

    def wrong(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return selective_scan.unbound(x, *rest[:-1], 1.1 * rest[-1])

    monkeypatch.setitem(selective_scan.LOOPS, "unbound", wrong)
    with pytest.raises(AssertionError, match="cannot be compared"):
        selective_scan._against_loop(selective_scan.network("quick"), "unbound", 32, 1, 1, None)


def test_memory_benchmark_runs_its_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command lines, here in this process."""
    from benchmarks import memory
    from scanprior.cli import app

    peaks = iter([100.0, 200.0, 50.0, 101.0, 230.0, 50.0])

    def in_process(command: list[str], **environment: str) -> Cost:
        assert command[1:3] == ["-m", "scanprior"]
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        app(command[3:], standalone_mode=False)
        return Cost(0.0, next(peaks))

    monkeypatch.setattr(memory, "cost", in_process)
    prepare, pretrain, predict = memory.run(Settings(tmp_path, quick=True, threads=1))
    assert prepare.value == pytest.approx(1.01) and prepare.met
    assert pretrain.value == pytest.approx(1.15) and not pretrain.met
    assert predict.value == 1.0 and len(pd.read_csv(tmp_path / "memory" / "store-80.csv")) == 80


def test_bare_losses_equal_ours(tmp_path: Path) -> None:
    from benchmarks import finetuning, pretraining
    from benchmarks.made_images import phantom_store
    from scanprior.api import plan_finetuning, plan_pretraining

    store = phantom_store(tmp_path, 64, 64)
    chosen: dict[str, Any] = {**pretraining.options("gmml"), "encoder.depth": 3}
    config = plan_pretraining(str(store.path), objective="gmml", options=chosen)
    module, source = pretraining.build(config, store)
    bare, batches = pretraining.bare_of(module, source, config, 1)
    assert float(bare(batches[0]).detach()) > 0
    finetuning.bare_of(store, plan_finetuning(str(store.path), options=finetuning.OPTIONS), 1)


def test_table_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert __main__.main(["corruption", "--quick", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "GMML corruption" in shown and ">= 10" in shown
    document = json.loads(out.read_text())
    first = document["benchmarks"]["corruption"][0]
    assert first["target"] == 10.0
    assert first["ours"]["median"] == first["ours"]["repeats"][0]
    assert document["versions"]["torch"] == torch.__version__.split("+")[0]
    assert document["machine"]["processors"] >= 1


def test_unknown_benchmark_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["speed"])
    assert stopped.value.code == 2
    assert "no benchmark 'speed'" in capsys.readouterr().err
