"""An evaluation of other images never replaces one that is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from api.conftest import Command
from scanprior import api
from scanprior.engine.checkpoint import replace_weights
from scanprior.errors import WeightsError
from scanprior.run import Run


@pytest.fixture
def run(finetuned: Run, tmp_path: Path) -> Run:
    return Run.open(shutil.copytree(finetuned.path, tmp_path / "run"))


def test_the_runs_own_evaluation_is_not_replaced(
    run: Run, phantoms: Path, tmp_path: Path, scanprior: Command
) -> None:
    own = (run.path / "evaluations" / "test.json").read_bytes()
    elsewhere = shutil.copytree(phantoms, tmp_path / "hospital" / "test")
    said = scanprior("evaluate", run.path, "--data", elsewhere)
    assert said.code == 0, said.err
    assert (run.path / "evaluations" / "hospital-test-test.json").exists() or (
        run.path / "evaluations" / "hospital-test.json"
    ).exists()
    refused = scanprior("evaluate", run.path, "--data", elsewhere, "--name", "test")
    assert refused.code == 2 and "own evaluation has this name" in refused.err
    assert (run.path / "evaluations" / "test.json").read_bytes() == own


def test_two_sources_of_one_name_and_one_source_with_another_map(
    run: Run, phantoms: Path, tmp_path: Path, scanprior: Command
) -> None:
    first, second = (shutil.copytree(phantoms, tmp_path / side / "same") for side in ("one", "two"))
    before = api.evaluate(run.path, data=first, split="val")
    assert api.evaluate(run.path, data=first, split="val") == before, "the same one may be repeated"
    for line in (
        ["--data", second, "--split", "val"],
        ["--data", first, "--split", "val", "--map", "normal=abnormal"],
        ["--data", first, "--split", "test", "--name", "same-val"],
    ):
        refused = scanprior("evaluate", run.path, *line)
        assert refused.code == 2 and "give this one another name with --name" in refused.err, refused.err
    assert scanprior("evaluate", run.path, "--data", second, "--split", "val", "--name", "two").code == 0


@pytest.mark.parametrize("name", ["../../evil", "a/b", "", ".hidden", "with space"])
def test_a_name_stays_in_the_folder(run: Run, phantoms: Path, name: str, scanprior: Command) -> None:
    if not name:
        return  # empty = not given
    refused = scanprior("evaluate", run.path, "--data", phantoms, "--name", name)
    assert refused.code == 2 and f"--name {name}" in refused.err


def test_drifts_of_other_data_stand_beside_the_runs_own(run: Run, phantoms: Path) -> None:
    api.drift(run.path, kinds=["gamma"])
    own = (run.path / "drifts.json").read_bytes()
    api.drift(run.path, kinds=["gamma"], data=phantoms, split="val")
    assert (run.path / "drifts.json").read_bytes() == own
    assert len(list(run.path.glob("drifts-*-val.json"))) == 1


def test_weights_that_cannot_be_written_leave_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors import SafetensorError

    path = tmp_path / "w.safetensors"
    replace_weights({"a": torch.ones(3)}, path)
    before = path.read_bytes()

    def full(state: object, part: Path, metadata: object) -> None:
        part.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("scanprior.engine.checkpoint.save_file", full)
    with pytest.raises(WeightsError, match=r"cannot be written .*free some space"):
        replace_weights({"a": torch.zeros(3)}, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_table_that_cannot_be_written_leaves_the_old_one(
    finetuned: Run, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:  # fmt: skip
    out = tmp_path / "p.csv"
    out.write_text("the table before\n")

    def full(self: object, path: Path, **_: object) -> None:
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    image = next((phantoms / "images").rglob("*.png"))
    with monkeypatch.context() as patch:
        patch.setattr("pandas.DataFrame.to_csv", full)
        said = refused("predict", finetuned.path, image, "--out", out)
    assert said == f"{out}: no space left on device; free some and run this again"
    parts = tmp_path / "p.csv.parts"
    assert out.read_text() == "the table before\n" and set(tmp_path.iterdir()) == {out, parts}
    with monkeypatch.context() as patch:  # nothing is computed again
        patch.setattr("scanprior.api.reading.read_reference", None)
        table = api.predict(finetuned.path, image, out=out, resume=True)
    assert len(table) == len(pd.read_csv(out)) == 1 and not parts.exists()
