"""The store: right pixels in the right rows, whatever breaks, is killed or comes in another order."""

from __future__ import annotations

import errno
import importlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scanprior import files
from scanprior.data import store_chunks, store_finishing, store_writer
from scanprior.data.fitting import fit_pixels, luminance
from scanprior.data.manifest import Manifest
from scanprior.data.readers import read_reference
from scanprior.data.store import Store, StoreSet, concatenate, prepare
from scanprior.data.store_chunks import Chunk, Shards, prepare_chunks
from scanprior.data.store_writer import Preparation, prepare_together, request_key
from scanprior.data.transforms import Preprocessing, prepare_image, to_input
from scanprior.errors import DataError


def write_images(
    folder: Path, count: int, *, colour: tuple[int, ...] = (), broken: tuple[int, ...] = ()
) -> Manifest:
    """Image i is noise with i in its top left quarter, so that a shifted row is seen."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    names = [f"{number:03d}.png" for number in range(count)]
    for number, name in enumerate(names):
        pixels = random.integers(0, 256, (24, 20, 3) if number in colour else (24, 20), dtype=np.uint8)
        pixels[:12, :10] = number % 256
        Image.fromarray(pixels).save(folder / name)
        if number in broken:
            (folder / name).write_bytes(b"not an image")
    return Manifest(pd.DataFrame({"image": names}), folder, name="made")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def all_pixels(store: Store) -> np.ndarray:
    return store.read(np.arange(len(store)))


# --- one image -------------------------------------------------------------------------------------------


def made_pixels(height: int, width: int, channels: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top + 1, (height, width, channels)).astype(dtype)


def antialiased(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    planes = torch.from_numpy(np.moveaxis(pixels, 2, 0).astype(np.float32))[None]
    resized = torch.nn.functional.interpolate(planes, size=(height, width), mode="bilinear", antialias=True)
    return resized[0].numpy()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_squash_is_torchs_antialiased_resize(dtype: str, channels: int) -> None:
    pixels = made_pixels(40, 60, channels, dtype)
    found = fit_pixels(pixels, size=24, channels=channels, depth=np.iinfo(dtype).bits, fit="squash")
    assert found.dtype == dtype and found.shape == (channels, 24, 24)
    np.testing.assert_allclose(found, antialiased(pixels, 24, 24), atol=1.0)


def test_crop_takes_the_centre_and_pad_keeps_everything() -> None:
    pixels = made_pixels(40, 60, 1)
    cropped = fit_pixels(pixels, size=20, channels=1, depth=8, fit="crop")
    expected = antialiased(pixels[:, 10:50], 20, 20)
    np.testing.assert_allclose(cropped[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1.0)
    padded = fit_pixels(pixels, size=30, channels=1, depth=8, fit="pad")
    np.testing.assert_allclose(padded[:, 5:25], antialiased(pixels, 20, 30), atol=1.0)
    assert not padded[:, :5].any() and not padded[:, 25:].any()
    assert fit_pixels(made_pixels(1, 900, 1), size=8, channels=1, depth=8, fit="pad")[:, 3:5].any()


def test_luminance_is_pillows() -> None:
    pixels = made_pixels(30, 30, 3)
    np.testing.assert_array_equal(luminance(pixels)[..., 0], np.asarray(Image.fromarray(pixels).convert("L")))
    white = np.full((2, 2, 3), 65535, dtype=np.uint16)
    assert (luminance(white) == 65535).all()


def test_depths_map_the_full_range() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    deep = fit_pixels(ramp, size=16, channels=1, depth=16, fit="squash")
    np.testing.assert_array_equal(deep[0], ramp[..., 0].astype(int) * 257)
    np.testing.assert_array_equal(
        fit_pixels(np.moveaxis(deep, 0, 2), size=16, channels=1, depth=8, fit="squash")[0], ramp[..., 0]
    )


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3]), st.sampled_from(["uint8", "uint16"]),
    st.integers(1, 40), st.sampled_from([1, 3]), st.sampled_from([8, 16]), st.sampled_from(["squash", "pad", "crop"]),
)  # fmt: skip
def test_any_image_fits(
    height: int, width: int, channels: int, dtype: str, size: int, wanted: int, depth: int, fit: str
) -> None:
    pixels = np.full((height, width, channels), np.iinfo(dtype).max, dtype=dtype)
    found = fit_pixels(pixels, size=size, channels=wanted, depth=depth, fit=fit)  # type: ignore[arg-type]
    assert found.shape == (wanted, size, size)
    assert found.dtype == (np.uint8 if depth == 8 else np.uint16)
    assert found.max() == 2**depth - 1  # white stays white
    if fit != "pad":
        assert found.min() == 2**depth - 1
    again = fit_pixels(np.moveaxis(found, 0, 2), size=size, channels=wanted, depth=depth, fit=fit)  # type: ignore[arg-type]
    np.testing.assert_array_equal(again, found)


# --- a store ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
def test_rows_hold_what_prepare_image_gives(tmp_path: Path, depth: int, fit: str) -> None:
    manifest = write_images(tmp_path / "in", 7, colour=(2, 5))
    store = prepare(manifest, tmp_path / "out", size=16, depth=depth, fit=fit, workers=0)  # type: ignore[arg-type]
    pre = Preprocessing.model_validate(
        {"size": 16, "channels": 3, "depth": depth, "fit": fit, "mean": store.mean, "std": store.std}
    )
    raw = np.stack([prepare_image(read_reference(name, manifest.root), pre) for name in store.frame["image"]])
    np.testing.assert_array_equal(all_pixels(store), raw)
    assert torch.equal(to_input(raw, pre), to_input(all_pixels(store), pre))
    smaller = pre.model_copy(update={"size": 8, "stored_size": 16})
    again = prepare_image(read_reference("003.png", manifest.root), smaller)
    assert torch.equal(to_input(again[None], smaller), to_input(store.read(np.array([3])), smaller))


def test_reading_is_by_row_in_the_order_asked(tmp_path: Path) -> None:
    store = prepare(write_images(tmp_path / "in", 90), tmp_path / "out", size=8, workers=0)
    mapped = np.load(tmp_path / "out" / "images-grey-00000.npy", mmap_mode="r")
    for rows in ([], [5], [5, 5, 4], list(range(90)), [89, 0, 1, 2, 40], list(range(89, -1, -1))):
        found = store.read(np.array(rows, dtype=np.int64))
        np.testing.assert_array_equal(found, mapped[rows] if rows else np.empty((0, 1, 8, 8)))
    for wrong in (-1, 90):
        with pytest.raises(DataError, match=f"no row {wrong}"):
            store.read(np.array([0, wrong]))


def test_several_shards_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_images(tmp_path / "in", 30)
    whole = prepare(manifest, tmp_path / "whole", size=8, workers=0)
    monkeypatch.setattr(store_chunks, "CHUNK_IMAGES", 4)
    monkeypatch.setattr(store_chunks, "SHARD_BYTES", 128 + 8 * 3 * 64)
    parts = prepare(manifest, tmp_path / "parts", size=8, workers=0)
    assert len(list((tmp_path / "parts").glob("images-*.npy"))) == 4
    rows = np.array([29, 7, 8, 9, 15, 16, 0, 29])
    np.testing.assert_array_equal(parts.read(rows), whole.read(rows))
    np.testing.assert_array_equal(all_pixels(parts), all_pixels(whole))


def test_a_broken_image_is_left_out_and_shifts_no_other(tmp_path: Path) -> None:
    manifest = write_images(tmp_path / "in", 100, broken=(0, 33, 99))
    (tmp_path / "in" / "050.png").unlink()
    store = prepare(manifest, tmp_path / "out", size=20, fit="squash", workers=2)
    assert len(store) == 96 and store.frame["row"].tolist() == list(range(96))
    for row, name in enumerate(store.frame["image"]):
        assert store.read(np.array([row]))[0, 0, 2, 2] == int(name[:3])
    gone = store.audit["left_out"]
    assert [entry["image"] for entry in gone] == ["000.png", "033.png", "050.png", "099.png"]
    assert "no such file" in gone[2]["reason"] and "text" in gone[0]["reason"]
    assert store.audit["images"] == 100 and store.audit["stored"] == 96


def test_statistics_are_exact_and_of_the_training_images(tmp_path: Path) -> None:
    manifest = write_images(tmp_path / "in", 40, colour=(3,), broken=(1,))
    split = ["train"] * 25 + ["val"] * 5 + [None] * 10
    manifest = Manifest(manifest.frame.assign(split=split), manifest.root)
    store = prepare(manifest, tmp_path / "out", size=16, depth=16, workers=0)
    train = np.flatnonzero(store.frame["split"] == "train")
    values = store.read(train).astype(np.float64) / 65535
    np.testing.assert_allclose(store.mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(store.std, values.std((0, 2, 3)), rtol=1e-9)
    assert store.audit["counted"] == {"images": 24, "rows": "train"}
    assert store.audit["left_out"][0]["split"] == "train"
    rows = np.array([7, 30, 31])
    mean, std = store.statistics(rows)
    values = store.read(rows).astype(np.float64) / 65535
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, values.std((0, 2, 3)), rtol=1e-9)


def test_identical_images_have_identical_digests(tmp_path: Path) -> None:
    manifest = write_images(tmp_path / "in", 4)
    shutil.copy(tmp_path / "in" / "001.png", tmp_path / "in" / "003.png")
    digests = prepare(manifest, tmp_path / "out", size=8, workers=0).frame["pixels"]
    assert digests[1] == digests[3] and digests.nunique() == 3


def test_columns_of_the_table_are_kept(tmp_path: Path) -> None:
    manifest = write_images(tmp_path / "in", 3)
    frame = manifest.frame.assign(label=["a", None, "b"], row=[7, 8, 9], age=[50.0, np.nan, 3.0])
    store = prepare(Manifest(frame, manifest.root, ["label"], "x"), tmp_path / "out", size=8, workers=0)
    assert store.frame["row (table)"].tolist() == [7, 8, 9] and store.frame["row"].tolist() == [0, 1, 2]
    back = store.manifest()
    assert back.label_columns == ["label"] and back.classes == ["a", "b"]
    assert back.root == (tmp_path / "in").resolve()


# --- colour ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_one_late_colour_image_makes_the_store_colour_without_decoding_again(
    tmp_path: Path, workers: int
) -> None:
    manifest = write_images(tmp_path / "in", 200, colour=(180,), broken=(5,))
    told = prepare(manifest, tmp_path / "told", size=8, channels=3, workers=workers)
    found = prepare(manifest, tmp_path / "found", size=8, workers=workers)
    assert found.channels == 3
    ours, theirs = content(tmp_path / "found"), content(tmp_path / "told")
    assert ours.keys() == theirs.keys()
    assert {n for n in ours if ours[n] != theirs[n]} == {"store.json"}  # which says what was asked for
    assert found.fingerprint == told.fingerprint


def test_channels_as_asked(tmp_path: Path) -> None:
    manifest = write_images(tmp_path / "in", 4, colour=(2,))
    assert prepare(write_images(tmp_path / "grey", 3), tmp_path / "a", size=8, workers=0).channels == 1
    one = prepare(manifest, tmp_path / "b", size=20, channels=1, workers=0)
    luma = np.asarray(
        Image.open(tmp_path / "in" / "002.png").convert("L").resize((20, 20), Image.Resampling.BILINEAR)
    )
    np.testing.assert_array_equal(one.read(np.array([2]))[0, 0], luma)


# --- killed, repeated, refused -----------------------------------------------------------------------------


def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    manifest = write_images(tmp_path / "in", 150, broken=(70,))
    for workers in (0, 1, 3):
        prepare(manifest, tmp_path / str(workers), size=8, workers=workers)
    assert content(tmp_path / "0") == content(tmp_path / "1") == content(tmp_path / "3")


KILLED = """
import os, signal, sys
from pathlib import Path
import pandas as pd
from scanprior.data.manifest import Manifest
from scanprior.data.store import prepare

def progress(done, total):
    print(done, flush=True)
    if done >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    root = Path(sys.argv[1])
    names = sorted(path.name for path in root.iterdir())
    manifest = Manifest(pd.DataFrame({"image": names}), root, name="made")
    prepare(manifest, sys.argv[2], size=8, workers=2, progress=progress)
"""


@pytest.mark.parametrize("colour", [(), (290,)])
def test_after_kill_9_it_goes_on_and_ends_the_same(tmp_path: Path, colour: tuple[int, ...]) -> None:
    manifest = write_images(tmp_path / "in", 300, colour=colour, broken=(11,))
    whole = prepare(manifest, tmp_path / "whole", size=8, workers=0)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    source = str(Path(store_writer.__file__).parents[2])
    run = subprocess.run(
        [sys.executable, str(script), str(manifest.root), str(tmp_path / "out"), "100"],
        env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == -signal.SIGKILL, run.stderr
    with pytest.raises(DataError, match="no finished store"):
        Store.open(tmp_path / "out")
    with next((tmp_path / "out").glob("journal-*.jsonl")).open("ab") as stream:
        stream.write(b'{"chunk": 4, "fir')  # a line torn by the kill
    steps: list[tuple[int, int]] = []
    store = prepare(manifest, tmp_path / "out", size=8, workers=0, progress=lambda *step: steps.append(step))
    assert steps[0][0] >= 100 and steps[-1] == (300, 300)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert store.fingerprint == whole.fingerprint
    deadline = time.monotonic() + 10
    while (left := _processes(str(script))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, "worker processes outlive the one that started them"


TOGETHER = """
import sys, time
from pathlib import Path
import pandas as pd
from scanprior.data.manifest import Manifest
from scanprior.data.store import prepare

if __name__ == "__main__":
    root = Path(sys.argv[1])
    names = sorted(path.name for path in root.iterdir())
    manifest = Manifest(pd.DataFrame({"image": names}), root, name="made")
    print("ready", flush=True)
    sys.stdin.readline()
    store = prepare(manifest, sys.argv[2], size=8, workers=0, progress=lambda *_: time.sleep(0.03))
    print(store.fingerprint, store.frame["pixels"].nunique())
"""


def several(folder: Path, manifest: Manifest) -> list[Preparation]:
    """Three stores of the same images, whose chunks and shards are divided otherwise."""
    return [
        Preparation(manifest, folder / "small", 24, 1, 8, "squash"),
        Preparation(manifest, folder / "large", 300, 3, 8, "pad"),
        Preparation(manifest, folder / "deep", 260, 1, 16, "crop"),
    ]


def counted_reading(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[str]:
    read: list[str] = []
    real = store_chunks.read_reference

    def reading(name: str, root: Path) -> object:
        if len(read) == stop_at:
            raise KeyboardInterrupt
        read.append(name)
        return real(name, root)

    monkeypatch.setattr(store_chunks, "read_reference", reading)
    return read


@pytest.mark.parametrize("workers", [0, 2])
def test_stores_made_together_are_those_made_alone_and_decode_each_image_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    manifest = write_images(tmp_path / "images", 150, broken=(3, 70))
    monkeypatch.setattr(store_chunks, "SHARD_BYTES", 16 * 2**20)  # shards end inside chunks of the others
    alone = several(tmp_path / "alone", manifest)
    for one in alone:
        one.run(0, None)
    read = counted_reading(monkeypatch)
    together = several(tmp_path / "together", manifest)
    stores = prepare_together(together, workers)
    assert workers or len(read) == len(set(read)) == 150
    assert [(store.size, len(store)) for store in stores] == [(24, 148), (300, 148), (260, 148)]
    for mine, theirs in zip(together, alone, strict=True):
        assert content(mine.out) == content(theirs.out)
    assert all(store.reused for store in prepare_together(together, 0))


def test_stores_made_together_go_on_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_images(tmp_path / "images", 150)
    with monkeypatch.context() as patch:
        counted_reading(patch, stop_at=100)
        with pytest.raises(KeyboardInterrupt):
            prepare_together(several(tmp_path / "together", manifest), 0)
    read = counted_reading(monkeypatch)
    together = several(tmp_path / "together", manifest)
    prepare_together(together, 0)
    # 64 images are in the store of the first, 62 in whole chunks of the second, 60 of the third.
    assert set(read) == set(manifest.frame["image"][60:]), "what was whole is not decoded again"
    for mine, theirs in zip(together, several(tmp_path / "alone", manifest), strict=True):
        theirs.run(0, None)
        assert content(mine.out) == content(theirs.out)


def test_processes_that_prepare_the_same_store_at_once_get_the_same(tmp_path: Path) -> None:
    manifest = write_images(tmp_path / "in", 300)
    whole = prepare(manifest, tmp_path / "whole", size=8, workers=0)
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    source = str(Path(store_writer.__file__).parents[2])
    runs = [
        subprocess.Popen(
            [sys.executable, str(script), str(manifest.root), str(tmp_path / "out")],
            env={**os.environ, "PYTHONPATH": source}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for run in runs:
        assert run.stdout is not None and run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    ends = [run.communicate(timeout=60) for run in runs]
    assert [out for out, _ in ends] == [f"{whole.fingerprint} 300\n"] * 3, ends
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert any("another process is writing here; waiting" in said for _, said in ends)


def test_a_journal_that_lost_records_makes_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_images(tmp_path / "in", 5)
    monkeypatch.setattr(store_writer.Journal, "records", lambda _: iter(()))
    with pytest.raises(DataError, match=r"knows 0 of the 5 images.*Prepare it again"):
        prepare(manifest, tmp_path / "out", size=8, workers=0)
    assert not (tmp_path / "out" / "store.json").exists()


def _processes(word: str) -> list[str]:
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    return [line.decode() for line in lines if word.encode() in line]


def test_every_interruption_between_two_steps_can_be_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop at each write of each file in turn, as a full disk would, and go on."""
    manifest = write_images(tmp_path / "in", 20, colour=(17,), broken=(3,))
    monkeypatch.setattr(store_chunks, "CHUNK_IMAGES", 4)
    expected = prepare(manifest, tmp_path / "whole", size=8, workers=0)
    steps = 0
    write, replace = Shards.write, files.write_bytes

    def counted(call: Callable[..., None], *arguments: object) -> None:
        nonlocal steps
        steps -= 1
        if steps == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        call(*arguments)

    monkeypatch.setattr(Shards, "write", lambda *a: counted(write, *a))
    for module in (files, store_finishing):  # write_text calls the former
        monkeypatch.setattr(module, "write_bytes", lambda *a: counted(replace, *a))
    for stop in range(1, 13):
        steps, out = stop, tmp_path / f"out{stop}"
        with pytest.raises(DataError, match=r"disk is full; the store needs 3,840 bytes.*run this again"):
            prepare(manifest, out, size=8, workers=0)
        steps = 0
        assert prepare(manifest, out, size=8, workers=0).fingerprint == expected.fingerprint
        assert content(out) == content(tmp_path / "whole")
    steps = 13
    prepare(manifest, tmp_path / "last", size=8, workers=0)
    assert steps == 1, "a step was added that this test does not stop at"


def test_a_finished_store_is_used_as_it_is(tmp_path: Path) -> None:
    manifest = write_images(tmp_path / "in", 5)
    first = prepare(manifest, tmp_path / "out", size=8, workers=0)
    before = content(tmp_path / "out")
    again = prepare(manifest, tmp_path / "out", size=8, workers=0, progress=lambda *_: pytest.fail("worked"))
    assert (first.reused, again.reused) == (False, True)
    assert content(tmp_path / "out") == before


def test_what_is_in_the_way_is_refused(tmp_path: Path) -> None:
    manifest = write_images(tmp_path / "in", 5)
    out = tmp_path / "out"
    with pytest.raises(DataError, match="holds something else"):
        prepare(manifest, tmp_path / "in", size=8, workers=0)
    with pytest.raises(DataError, match="a file is here"):
        prepare(manifest, tmp_path / "in" / "000.png", size=8, workers=0)
    prepare(manifest, out, size=8, workers=0)
    with pytest.raises(DataError, match="other images or settings is here"):
        prepare(manifest, out, size=9, workers=0)
    with pytest.raises(DataError, match="other images or settings is here"):
        prepare(manifest.subset([0, 1]), out, size=8, workers=0)
    Image.new("L", (30, 30), 9).save(tmp_path / "in" / "004.png")
    with pytest.raises(DataError, match="files have changed"):
        prepare(manifest, out, size=8, workers=0)


def test_an_unfinished_store_of_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_images(tmp_path / "in", 5)
    monkeypatch.setattr(store_finishing, "write_bytes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(manifest, tmp_path / "out", size=8, workers=0)
    monkeypatch.undo()
    with pytest.raises(DataError, match="unfinished store of other images or settings"):
        prepare(manifest, tmp_path / "out", size=16, workers=0)
    assert len(prepare(manifest, tmp_path / "out", size=8, workers=0)) == 5


@pytest.mark.parametrize(
    ("name", "value"), [("channels", 2), ("depth", 12), ("fit", "stretch"), ("size", 0), ("workers", -1)]
)
def test_impossible_settings_are_named(tmp_path: Path, name: str, value: object) -> None:
    arguments = {"size": 8, "workers": 0, name: value}
    with pytest.raises(DataError, match=f"{name}="):
        prepare(write_images(tmp_path / "in", 1), tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_damage_and_newer_versions_are_found_when_opening(tmp_path: Path) -> None:
    prepare(write_images(tmp_path / "in", 5), tmp_path / "out", size=8, workers=0)
    description, shard = tmp_path / "out" / "store.json", tmp_path / "out" / "images-grey-00000.npy"
    facts = json.loads(description.read_text())
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match="447 bytes instead of 448"):
        Store.open(tmp_path / "out")
    shard.unlink()
    with pytest.raises(DataError, match="is missing"):
        Store.open(tmp_path / "out")
    for text, message in (
        (json.dumps(facts | {"version": 99}), "version 99, this program reads up to 1"),
        (json.dumps({"a": 1}), "not the description"),
        ("{", "damaged"),
    ):
        description.write_text(text)
        with pytest.raises(DataError, match=message):
            Store.open(tmp_path / "out")


def test_nothing_but_broken_images_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    manifest = write_images(tmp_path / "in", 3, broken=(0, 1, 2))
    with pytest.raises(DataError, match=r"none of the 3 images can be read; the first, 000.png"):
        prepare(manifest, tmp_path / "out", size=8, workers=0)
    assert not list((tmp_path / "out").iterdir())


def test_a_disk_that_is_too_small_is_known_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_images(tmp_path / "in", 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(DataError, match="needs 320 more bytes and the disk has 100 free"):
        prepare(manifest, tmp_path / "out", size=8, workers=0)


def test_the_request_key_knows_the_files(tmp_path: Path) -> None:
    manifest = write_images(tmp_path / "in", 3)
    key = request_key(manifest, size=8)
    assert key == request_key(manifest, size=8) != request_key(manifest, size=8, depth=16)
    os.utime(tmp_path / "in" / "001.png", (1, 1))
    touched = request_key(manifest, size=8)
    (tmp_path / "in" / "001.png").unlink()
    assert len({key, touched, request_key(manifest, size=8)}) == 3


# --- processes -------------------------------------------------------------------------------------------


CRASHING = """
import os, signal
from scanprior.data.store_chunks import Record

DEADLY = ("1.2", "4.0")

def decode(chunk):  # stands for a codec that kills its process on some images
    for place, reference in enumerate(chunk.references):
        if chunk.first + place not in chunk.unreadable:
            try_image(reference)
    return Record(chunk.number, chunk.first, "", [], list(chunk.references), sorted(chunk.unreadable.items()),
        [(1, 1)] * len(chunk.references))

def try_image(reference):
    if reference in DEADLY:
        os.kill(os.getpid(), signal.SIGSEGV)

def die(chunk):
    os._exit(3)
"""


@pytest.fixture
def crashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "crashing_codec.py").write_text(CRASHING)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("crashing_codec")


def test_an_image_that_kills_its_decoder_is_left_out(crashing: ModuleType) -> None:
    chunks = [Chunk(n, 3 * n, tuple(f"{n}.{i}" for i in range(3))) for n in range(6)]
    records = prepare_chunks(iter(chunks), crashing.decode, crashing.try_image, workers=2)
    found = {record.chunk: record.left_out for record in records}
    assert sorted(found) == list(range(6))
    assert {n: [slot for slot, _ in gone] for n, gone in found.items() if gone} == {1: [5], 4: [12]}
    assert "crashes" in found[1][0][1]


def test_processes_that_die_for_no_image_end_in_a_clear_error(crashing: ModuleType) -> None:
    with pytest.raises(DataError, match="worker process died"):
        list(prepare_chunks([Chunk(0, 0, ("a.png",))], crashing.die, crashing.try_image, workers=1))


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np, pandas as pd
from scanprior.data.manifest import Manifest
from scanprior.data.store import prepare

root = Path(sys.argv[1])
np.save(root / "a.npy", np.zeros((2000, 16, 16), np.uint8))
peaks = []
for count in (200, 2000):
    frame = pd.DataFrame({"image": [f"a.npy[{number}]" for number in range(count)]})
    store = prepare(Manifest(frame, root), root / str(count), size=160, workers=0)
    for start in range(0, count, 100):
        store.read(np.arange(start, start + 100))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    source = str(Path(store_writer.__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert int(run.stdout) < 8 * 1024, "peak memory in KB grew; the additional images are 46 MB"


# --- several stores, other processes -----------------------------------------------------------------------


def test_a_store_pickles_small_and_reads_the_same(tmp_path: Path) -> None:
    store = prepare(write_images(tmp_path / "in", 50), tmp_path / "out", size=8, workers=0)
    assert len(store.frame) == 50
    rows = np.array([4, 9, 1])
    pickled = pickle.dumps(StoreSet([store, store]))
    assert len(pickled) < 4000
    np.testing.assert_array_equal(pickle.loads(pickled).read(rows + 50), store.read(rows))


def test_several_stores_act_as_one(tmp_path: Path) -> None:
    parts = [
        prepare(
            write_images(tmp_path / f"in{count}", count, broken=(2,)),
            tmp_path / f"out{count}",
            size=8,
            workers=0,
        )
        for count in (5, 9, 4)
    ]
    together = concatenate(parts)
    pixels = np.concatenate([all_pixels(part) for part in parts])
    assert len(together) == 15
    rows = np.array([14, 0, 4, 3, 12, 4])
    np.testing.assert_array_equal(together.read(rows), pixels[rows])
    assert together.read(np.array([], dtype=np.int64)).shape == (0, 1, 8, 8)
    np.testing.assert_allclose(together.mean, [pixels.mean() / 255], rtol=1e-12)
    np.testing.assert_allclose(together.std, [pixels.std() / 255], rtol=1e-9)
    np.testing.assert_allclose(together.statistics(rows)[0], [pixels[rows].mean() / 255], rtol=1e-12)
    assert together.frame["row"].tolist() == list(range(15))
    assert together.frame["source"].tolist() == ["made"] * 4 + ["made-2"] * 8 + ["made-3"] * 3
    assert [entry["source"] for entry in together.audit["left_out"]] == ["made", "made-2", "made-3"]
    assert concatenate(parts[:1]) is parts[0]
    with pytest.raises(DataError, match="no row 15"):
        together.read(np.array([15]))


def test_stores_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    manifest = write_images(tmp_path / "in", 2)
    first = prepare(manifest, tmp_path / "a", size=8, workers=0)
    for changed, word in (
        ({"size": 9}, "size 8"),
        ({"size": 8, "channels": 3}, "channels 1"),
        ({"size": 8, "fit": "pad"}, "fit squash"),
    ):
        other = prepare(manifest, tmp_path / str(changed), workers=0, **changed)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=f"has {word} and"):
            concatenate([first, other])
    with pytest.raises(DataError, match="no store"):
        concatenate([])


# --- real images -----------------------------------------------------------------------------------------


def test_real_radiographs(tmp_path: Path, real_data: Callable[[str], Path]) -> None:
    root = real_data("kermany")
    table = pd.read_csv(root / "labels.csv").iloc[::90]
    store = prepare(Manifest(table[["image", "split"]], root), tmp_path / "out", size=64, workers=2)
    assert (store.channels, len(store)) == (1, len(table))
    for row in (0, 17, len(store) - 1):
        image = Image.open(root / store.frame["image"][row]).convert("L")
        expected = antialiased(np.asarray(image)[..., None], 64, 64)
        assert np.abs(store.read(np.array([row]))[0] - expected).mean() < 1.0


def test_real_arrays(tmp_path: Path, real_data: Callable[[str], Path]) -> None:
    folder = real_data("pneumoniamnist")
    file = next(folder.glob("*.npz"))
    names = [f"{file.name}[val_images][{number}]" for number in range(80)]
    store = prepare(Manifest(pd.DataFrame({"image": names}), folder), tmp_path / "out", size=28, workers=0)
    np.testing.assert_array_equal(all_pixels(store)[:, 0], np.load(file)["val_images"][:80])
