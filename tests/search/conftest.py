"""Fixtures of the tests of person search in footage."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest

DIMENSION = 16
START = datetime(2026, 3, 1, 8, tzinfo=timezone.utc)


def _detections(first: int, last: int, *, seed: int = 0, dimension: int = DIMENSION) -> Any:
    """Rows first..last-1 of an endless list of detections: three cameras of two sources, each fifth of unknown time."""
    import pyarrow as pa
    from person_search.search.store import detection_id, detections_schema, tracklet_id

    numbers = np.arange(first, last)
    vectors = np.stack([np.random.default_rng([seed, k]).normal(size=dimension) for k in numbers]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cameras = [("gate", 'it\'s a "yard"', "Straße\\1")[k % 3] for k in numbers]
    sources = [f"/footage/{'ab'[k % 2]}.mp4" for k in numbers]
    named = list(zip(sources, cameras, numbers.tolist(), strict=True))
    columns: dict[str, Any] = {
        "id": [detection_id(source, camera, k, 0) for source, camera, k in named],
        "source": sources,
        "camera": cameras,
        "time": [None if k % 5 == 0 else START + timedelta(seconds=int(k)) for k in numbers],
        "offset": numbers / 2,
        "frame": numbers,
        "x0": numbers % 7,
        "y0": numbers % 11,
        "x1": numbers % 7 + 20.5,
        "y1": numbers % 11 + 40.25,
        "width": np.full(len(numbers), 640),
        "height": np.full(len(numbers), 480),
        "score": np.full(len(numbers), 0.75),
        "tracklet": [tracklet_id(source, camera, k // 12) for source, camera, k in named],
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dimension),
    }
    schema = detections_schema(dimension)
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in schema}, schema=schema)


@pytest.fixture(scope="session")
def make_detections() -> Callable[..., Any]:
    """`make_detections(first, last)`: a table of those of an endless list of detections, always the same."""
    return _detections
