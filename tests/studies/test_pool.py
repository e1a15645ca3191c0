"""The pool: order, failures, deaths."""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from scanprior.errors import DataError
from scanprior.files import writing
from scanprior.studies.pool import Pool


@dataclass(frozen=True)
class Errand:
    name: str
    place: Path
    needs: tuple[str, ...] = ()
    what: str = "write"


def go(errand: Errand) -> None:
    if errand.what == "refuse":
        raise DataError("there is nothing to do")
    if errand.what == "break":
        raise ValueError("a line\nand another")
    if errand.what == "fill":
        with writing(errand.place / "table.csv"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if errand.what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if errand.what == "slow":
        time.sleep(0.3)
    with (errand.place / "done").open("a") as stream:
        stream.write(f"{errand.name}\n")


def done(place: Path) -> list[str]:
    file = place / "done"
    return file.read_text().split() if file.exists() else []


def test_steps_come_after_what_they_need_and_finished_ones_are_left(tmp_path: Path) -> None:
    steps = [
        Errand("last", tmp_path, ("middle", "first")),
        Errand("middle", tmp_path, ("first",), "slow"),
        Errand("first", tmp_path),
        Errand("old", tmp_path),
        Errand("after old", tmp_path, ("old",), "slow"),
    ]
    ends = list(Pool(go, 2).run(steps, {"old"}))
    assert [end.error for end in ends] == [None] * 4
    order = (tmp_path / "done").read_text().splitlines()
    assert sorted(order) == ["after old", "first", "last", "middle"]
    assert order.index("first") < order.index("middle") < order.index("last")


def test_a_step_that_fails_ends_no_other_and_is_named(tmp_path: Path) -> None:
    steps = [
        Errand("refused", tmp_path, what="refuse"),
        Errand("broken", tmp_path, what="break"),
        Errand("killed", tmp_path, what="die"),
        Errand("needs it", tmp_path, ("killed",)),
        Errand("needs that", tmp_path, ("needs it",)),
        Errand("free", tmp_path, what="slow"),
        Errand("free too", tmp_path),
    ]
    ends = {end.name: end.error for end in Pool(go, 2).run(steps, set())}
    assert ends.pop("free") is None and ends.pop("free too") is None
    assert ends["refused"] == "there is nothing to do"
    assert ends["broken"] == "ValueError: a line and another"
    assert "killed by SIGKILL" in str(ends["killed"]) and "fewer workers" in str(ends["killed"])
    assert ends["needs it"] == "not run, because killed failed"
    assert ends["needs that"] == "not run, because needs it failed"
    assert sorted((tmp_path / "done").read_text().splitlines()) == ["free", "free too"]


def test_a_worker_that_dies_with_nothing_to_do_is_replaced(tmp_path: Path) -> None:
    steps = [Errand("a", tmp_path), Errand("slow", tmp_path, what="slow"), Errand("b", tmp_path, ("slow",))]
    pool = Pool(go, 2)
    ends = []
    for end in pool.run(steps, set()):
        ends.append((end.name, end.error))
        for worker in pool._running:
            if worker.step is None:
                worker.process.kill()
                worker.process.join()
    assert sorted(ends) == [("a", None), ("b", None), ("slow", None)]


def test_two_workers_work_at_the_same_time_and_threads_are_set(tmp_path: Path) -> None:
    pool = Pool(threads_seen, 2, threads=1)
    assert not [end for end in pool.run([Errand(str(n), tmp_path) for n in range(4)], set()) if end.error]
    seen = [line.split() for line in (tmp_path / "done").read_text().splitlines()]
    assert len({process for process, _ in seen}) == 2 and {threads for _, threads in seen} == {"1"}


def threads_seen(errand: Errand) -> None:
    import torch

    deadline = time.monotonic() + 20
    (errand.place / f"{os.getpid()}.here").touch()
    while len(list(errand.place.glob("*.here"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    with (errand.place / "done").open("a") as stream:
        stream.write(f"{os.getpid()} {torch.get_num_threads()}\n")


def test_a_full_disk_is_said_with_the_file_that_was_written(tmp_path: Path) -> None:
    (end,) = Pool(go, 1).run([Errand("full", tmp_path, what="fill")], set())
    assert end.error == f"{tmp_path / 'table.csv'}: no space left on device; free some and run this again"
