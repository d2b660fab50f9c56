"""The benchmark of searches in annotated footage: what it says of tracklets and of verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="the extra [search] is not installed")
pytest.importorskip("lancedb", reason="the extra [search] is not installed")

from person_search.search.store import (  # noqa: E402
    StoreInfo,
    detection_id,
    detections_schema,
    open_store,
    tracklet_id,
)

from ..programs import load_program  # noqa: E402

DIMENSION, PERSONS, FRAMES = 32, 10, 60
VIDEO = "/footage/yard.mp4"


@pytest.fixture(scope="module")
def benchmark(repository: Path) -> ModuleType:
    return load_program(repository / "benchmarks" / "footage_search.py")


def footage(folder: Path, noise: float):
    """A store of a yard in which ten persons walk apart from each other, each twice; rows, embeddings and persons."""
    rng = np.random.default_rng(0)
    people = rng.normal(size=(PERSONS, DIMENSION))
    rows = []
    for frame in range(FRAMES):
        for who in rng.choice(PERSONS, 5, replace=False).tolist():
            number = 2 * who + frame // 30
            vector = people[who] + noise * rng.normal(size=DIMENSION)
            rows.append({
                "id": detection_id(VIDEO, "yard", frame, who), "source": VIDEO, "camera": "yard", "time": None,
                "offset": float(frame), "frame": frame, "x0": 50.0 * who, "y0": 0.0, "x1": 50.0 * who + 40, "y1": 90.0,
                "width": 500, "height": 100, "score": 0.9, "tracklet": tracklet_id(VIDEO, "yard", number),
                "embedding": (vector / np.linalg.norm(vector)).tolist(),
            })  # fmt: skip
    store = open_store(str(folder / "store"), info=StoreInfo("model", "0" * 64, DIMENSION), create=True)
    store.upsert(pa.Table.from_pylist(rows, schema=detections_schema(DIMENSION)))
    persons = np.array([int(row["tracklet"][-6:]) // 2 for row in rows])
    return store, rows, np.array([row["embedding"] for row in rows], np.float32), persons


def test_tracking_counts_what_was_joined(benchmark):
    rows = [{"tracklet": name} for name in ["a"] * 4 + ["b"] * 2 + ["c", "d"]]
    person = np.array([1, 1, 1, 2, 2, 2, 1, benchmark.NOBODY])
    assert benchmark.tracking(rows, person) == {"all": 4, "of_nobody": 1, "a_person": 1.5, "purity": 85.7}


def test_a_model_that_knows_everybody_finds_everybody(benchmark, tmp_path):
    store, rows, embeddings, person = footage(tmp_path, 0.3)
    found = benchmark.verdicts(store, rows, embeddings, person, np.arange(0, len(rows), 10))
    assert found["true_called_likely"] == found["found"] == 100
    assert found["true_appearances"] == found["searches_for_who_is_there"] == found["searches_for_who_is_not"] == 30
    assert found["false_alarms"] <= 5 and found["likely_false"] <= 10  # one false match in twenty searches is allowed
    json.dumps(found)


def test_a_model_that_knows_nobody_calls_nobody_likely(benchmark, tmp_path):
    store, rows, embeddings, person = footage(tmp_path, 0.3)
    noise = np.random.default_rng(1).normal(size=embeddings.shape).astype(np.float32)
    found = benchmark.verdicts(store, rows, benchmark.unit(noise), person, np.arange(0, len(rows), 4))
    assert found["true_called_likely"] <= 5 and found["found"] <= 5
    assert found["false_alarms"] <= 8  # one in twenty is promised, from 45 pairs of people
