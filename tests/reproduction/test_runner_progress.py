"""How long is left, by hand."""

from __future__ import annotations

import json

import pytest
from person_search.progress import duration
from person_search.reproduction.runner import Active, seconds_left, status, training_progress


@pytest.mark.parametrize(
    ("done", "active", "pending", "jobs", "expected"),
    [
        ([], [], 3, 1, None),
        ([], [Active("a", 5.0, None, None)], 3, 1, None),
        ([100.0], [], 3, 1, 300.0),
        ([100.0, 200.0], [], 3, 2, 225.0),
        ([100.0], [Active("a", 30.0, 4, 50.0)], 0, 1, 50.0),
        # One needs 100 s as a whole, the other 180 s: 140 s on average.
        ([100.0], [Active("a", 30.0, 4, 150.0), Active("b", 30.0, None, None)], 2, 2, (150 + 110 + 280) / 2),
        # Two lanes, but the one that is under way cannot be split.
        ([10.0], [Active("a", 0.0, 4, 90.0)], 1, 2, 90.0),
        ([100.0], [Active("a", 130.0, None, None)], 0, 1, 0.0),
    ],
)
def test_seconds_left(done, active, pending, jobs, expected):
    assert seconds_left(done, active, pending, jobs) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (95, "2 min"), (3600, "60 min"), (5400, "1 h 30 min"), (11100, "3 h 05 min")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_a_line_of_status():
    active = [Active("sl, seed 0", 3.0, 40, 60.0), Active("ssl, seed 1", 1.0, None, None)]
    assert status(2, 12, active, 700.0) == (
        "2 of 12 runs done, training sl, seed 0 at iteration 40; ssl, seed 1, about 12 min left"
    )
    assert status(12, 12, [], 0.0) == "12 of 12 runs done"
    assert status(11, 12, [], 0.0) == "11 of 12 runs done"  # the other has failed


def test_progress_comes_from_the_metrics(tmp_path):
    file = tmp_path / "metrics.json"
    assert training_progress(file) == (None, None)
    file.write_text(json.dumps({"iteration": 3, "lr": 0.1}) + "\n")
    assert training_progress(file) == (None, None)
    file.write_text("".join(json.dumps({"iteration": i, "eta_seconds": 100.0 - i}) + "\n" for i in (3, 9)) + '{"iter')
    assert training_progress(file) == (9, 91.0)
