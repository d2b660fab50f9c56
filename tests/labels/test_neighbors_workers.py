"""Blocks of work on threads: their order, their errors, and the number of threads afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from person_search.labels.neighbors import Scratch, Workers


@pytest.fixture(params=[1, 2, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order(threads: int) -> None:
    def work(item: int) -> int:
        # Later items finish first.
        time.sleep(0.002 * (20 - item))
        return item * item

    with Workers("cpu") as workers:
        assert workers.count == threads
        assert list(workers.map(work, range(20))) == [i * i for i in range(20)]
        assert list(workers.map(work, [])) == []
    assert torch.get_num_threads() == threads


def test_items_run_at_a_time_with_one_thread_each(threads: int) -> None:
    together = threading.Barrier(threads)

    def work(_: int) -> int:
        together.wait(timeout=20)
        return torch.get_num_threads()

    with Workers("cpu") as workers:
        assert set(workers.map(work, range(threads))) == {1}


def test_errors_are_passed_on_and_threads_given_back(threads: int) -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("item 3")
        return item

    with pytest.raises(ValueError, match="item 3"):
        with Workers("cpu") as workers:
            list(workers.map(work, range(100)))
    assert torch.get_num_threads() == threads


def test_scratch_is_zero_and_belongs_to_one_thread() -> None:
    scratch, device = Scratch(), torch.device("cpu")
    first = scratch.zeros(10, device)
    first += 1
    assert scratch.zeros(6, device).tolist() == [0] * 6 and scratch.zeros(20, device).tolist() == [0] * 20
    mine = scratch.zeros(5, device)
    other: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: other.append(scratch.zeros(5, device)))
    thread.start()
    thread.join()
    other[0] += 1
    assert mine.tolist() == [0] * 5


def test_what_is_submitted_has_run_when_the_context_ends(threads: int) -> None:
    done: list[int] = []

    def work(item: int) -> None:
        time.sleep(0.01)
        done.append(item)

    with Workers("cpu") as workers:
        for item in range(5):
            workers.submit(work, item)
            list(workers.map(lambda item: item, range(3)))
    assert sorted(done) == list(range(5)) and torch.get_num_threads() == threads


def test_errors_of_what_is_submitted_are_raised_at_the_end(threads: int) -> None:
    def work(item: int) -> None:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 3"):
        with Workers("cpu") as workers:
            workers.submit(work, 3)
    assert torch.get_num_threads() == threads
