"""A batch is computed in two halves side by side, each with half of the cores."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
import torch

from scanprior.engine import Halves


@pytest.fixture
def halves() -> Iterator[Halves]:
    before = torch.get_num_threads()
    made = Halves(4)
    yield made
    made.close()
    torch.set_num_threads(before)


def test_halves_are_computed_at_the_same_time_and_answers_keep_their_order(halves: Halves) -> None:
    both, sizes = threading.Barrier(2), []

    def compute(items: Sequence[int]) -> list[tuple[int, int]]:
        both.wait(30)  # not passed by one after the other
        sizes.append(len(items))
        return [(item, torch.get_num_threads()) for item in items]

    assert halves(compute, range(7)) == [(n, 2) for n in range(7)]
    assert sorted(sizes) == [3, 4]


def test_one_item_is_computed_by_the_caller_with_all_cores(halves: Halves) -> None:
    found = halves(lambda items: [(threading.get_ident(), torch.get_num_threads())], [1])
    assert found == [(threading.get_ident(), 4)]


def test_with_one_core_a_batch_stays_whole() -> None:
    before = torch.get_num_threads()
    whole = Halves(1)
    assert whole(lambda items: [len(items)] * len(items), range(5)) == [5] * 5
    whole.close()
    torch.set_num_threads(before)


def test_a_half_that_fails_fails_the_batch_once_the_other_has_ended(halves: Halves) -> None:
    failed, ended = threading.Event(), []

    def compute(items: Sequence[int]) -> Sequence[int]:
        if items[0] == 0:
            failed.set()
            raise MemoryError("first half")
        assert failed.wait(30)
        ended.append(items)
        return items

    with pytest.raises(MemoryError, match="first half"):
        halves(compute, range(4))
    assert ended == [range(2, 4)]
    assert halves(lambda items: items, range(4)) == [0, 1, 2, 3]
