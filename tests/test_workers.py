"""Worker processes do not run the user's script again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scanprior.data.parallel import ordered_map
from scanprior.data.phantom import PhantomConfig, write_phantoms
from scanprior.errors import DataError

SCRIPT = """
import sys
from pathlib import Path
from scanprior import api
from scanprior.data.parallel import ordered_map

with open("starts.txt", "a") as file:
    file.write("started\\n")
api.prepare("phantoms", out="store", options={"data.size": 32, "data.workers": 2})
assert list(ordered_map(abs, range(-600, 0), workers=2)) == list(range(600, 0, -1))
"""


@pytest.mark.parametrize("how", ["file", "command"])
def test_a_script_without_a_main_guard_is_run_once(tmp_path: Path, how: str) -> None:
    write_phantoms(tmp_path / "phantoms", PhantomConfig(patients=40, size=32, seed=0), workers=1)
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = ["script.py"] if how == "file" else ["-c", SCRIPT]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "starts.txt").read_text() == "started\n"
    assert (tmp_path / "store").is_dir()


PROCESS = "(__import__('time').sleep(0.002), __import__('os').getpid())[1]"
"""An expression whose value is the number of the process that works it out."""


def test_items_are_computed_here_until_a_worker_has_started_and_while_it_is_waited_for() -> None:
    found = list(ordered_map(eval, [PROCESS] * 1000, workers=1))
    others = set(found) - {os.getpid()}
    assert len(found) == 1000 and len(others) == 1
    start = found.index(others.pop())
    assert start > 0 and os.getpid() in found[start:]


def test_what_fails_fails_when_it_is_its_turn() -> None:
    items = [PROCESS] * 600
    items[400] = "1 / 0"  # computed by whoever is free, with no more than 15 items before it
    found = []
    with pytest.raises(ZeroDivisionError):
        for one in ordered_map(eval, items, workers=1):
            found.append(one)
    assert 384 < len(found) <= 400


def test_a_worker_that_dies_ends_in_a_clear_error() -> None:
    dies = f"{PROCESS} == {os.getpid()} or __import__('os')._exit(1)"
    with pytest.raises(DataError, match="worker process died"):
        list(ordered_map(eval, [dies] * 1000, workers=2))
