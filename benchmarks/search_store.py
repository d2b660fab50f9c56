"""Time and memory of searches in a store of detections, beside a plain product of matrices; prints one JSON line.

    python benchmarks/search_store.py                                   # 200,000 detections in a temporary folder
    python benchmarks/search_store.py --rows 1000000                    # so many that an index is searched
    python benchmarks/search_store.py --store http://127.0.0.1:19530/benchmark

The searches run in a process of their own: `peak_mb` is its memory, of which `imported_mb` are the libraries. Times
are medians in milliseconds, `cpu` of all threads together. `numpy` holds all embeddings in memory, multiplies them and
takes the best, with the same queries in the same process; where other programs load the machine, the ratio to it says
more than the times. `narrow` asks for a tenth of one camera's time, `camera` for one of five cameras. `recall` is the
share of numpy's results that the store returns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from person_search.search.store import (
    EVERYTHING,
    Filter,
    Store,
    StoreInfo,
    detection_id,
    detections_schema,
    embeddings_of,
    open_store,
    tracklet_id,
)

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
CAMERAS = 5
BLOCK = 10_000
PERSONS = 2000
LIMIT = 100


def detections(first: int, last: int, rows: int, dimension: int) -> pa.Table:
    """Rows first..last-1: one camera after the other, two detections a second, appearances of known persons."""
    numbers = np.arange(first, last)
    persons = np.random.default_rng(0).normal(size=(PERSONS, dimension))
    rng = np.random.default_rng([1, first])
    vectors = persons[rng.integers(0, PERSONS, len(numbers))] + rng.normal(size=(len(numbers), dimension))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    cameras = [f"camera {k * CAMERAS // rows}" for k in numbers]
    places = numbers % max(rows // CAMERAS, 1)
    named = [(f"/footage/{c}.mp4", c, int(k)) for c, k in zip(cameras, places, strict=True)]
    count = len(numbers)
    columns: dict[str, Any] = {
        "id": [detection_id(s, c, k // 4, k % 4) for s, c, k in named],
        "source": [s for s, _, _ in named],
        "camera": cameras,
        "time": [START + timedelta(seconds=k / 2) for k in places.tolist()],
        "offset": places / 2,
        "frame": places // 4,
        **{name: np.full(count, 10.0) for name in ("x0", "y0", "x1", "y1", "score")},
        "width": np.full(count, 1920),
        "height": np.full(count, 1080),
        "tracklet": [tracklet_id(s, c, k // 20) for s, c, k in named],
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dimension),
    }
    schema = detections_schema(dimension)
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in schema}, schema=schema)


def fill(uri: str, rows: int, dimension: int) -> dict[str, float]:
    """Makes the store; seconds of writing and of bringing it into order."""
    store = open_store(uri, info=StoreInfo("benchmark", "0" * 64, dimension), create=True)
    writing = 0.0
    for first in range(0, rows, BLOCK):
        block = detections(first, min(first + BLOCK, rows), rows, dimension)
        start = time.perf_counter()
        store.upsert(block)
        writing += time.perf_counter() - start
    start = time.perf_counter()
    store.optimize()
    optimizing = time.perf_counter() - start
    store.close()
    return {"rows_per_second_written": round(rows / writing), "optimize_s": round(optimizing, 2)}


def median_ms(call: Callable[[np.ndarray], object], queries: np.ndarray) -> tuple[float, float]:
    """Medians of the milliseconds, by the clock and of the CPU, that a call takes; a first call does not count."""
    call(queries[0])
    times = []
    for query in queries:
        start, cpu = time.perf_counter(), time.process_time()
        call(query)
        times.append((time.perf_counter() - start, time.process_time() - cpu))
    clock, cpu = 1000 * np.median(times, axis=0)
    return round(float(clock), 1), round(float(cpu), 1)


def reference(store: Store, where: Filter) -> tuple[np.ndarray, list[str]]:
    """Embeddings and ids of the detections that meet a filter."""
    batches = [(embeddings_of(batch), batch["id"].to_pylist()) for batch in store.scan(where, ["id", "embedding"])]
    return np.concatenate([vectors for vectors, _ in batches]), [name for _, names in batches for name in names]


def best(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Places of the most similar vectors, best first."""
    similarity = vectors @ query
    top = np.argpartition(-similarity, min(LIMIT, len(similarity) - 1))[:LIMIT]
    return top[np.argsort(-similarity[top])]


def measure(uri: str, dimension: int, count: int) -> dict[str, Any]:
    """Times, ratios to numpy, recall and peak memory of searches."""
    imported = peak_mb()
    start = time.perf_counter()
    store = open_store(uri)
    opening = time.perf_counter() - start
    block = detections(0, count, store.count(), dimension)  # persons as they are in the store, seen again
    noise = np.random.default_rng(2).normal(size=(count, dimension)).astype(np.float32) / np.sqrt(dimension)
    queries = embeddings_of(block) + 0.3 * noise
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    tenth = timedelta(seconds=store.count() / CAMERAS / 2 / 10)
    filters = {
        "all": EVERYTHING,
        "narrow": Filter(cameras=("camera 2",), since=START + 4 * tenth, until=START + 5 * tenth),
        "camera": Filter(cameras=("camera 2",)),
    }
    start = time.perf_counter()
    store.search(queries[0], limit=LIMIT)
    result: dict[str, Any] = {"open_s": round(opening, 2), "first_search_s": round(time.perf_counter() - start, 3)}
    found: dict[str, list[set[str]]] = {}
    for name, where in filters.items():
        found[name] = []

        def ask(query: np.ndarray, name: str = name, where: Filter = where) -> None:
            found[name].append(set(store.search(query, where=where, limit=LIMIT)[0]["id"].to_pylist()))

        result[f"{name}_ms"], result[f"{name}_cpu_ms"] = median_ms(ask, queries)
    result |= {"imported_mb": imported, "peak_mb": peak_mb()}
    for name, where in filters.items():
        vectors, ids = reference(store, where)
        result[f"{name}_rows"] = len(ids)
        result[f"{name}_numpy_ms"] = median_ms(lambda query, vectors=vectors: best(vectors, query), queries)[0]
        result[f"{name}_ratio"] = round(result[f"{name}_ms"] / max(result[f"{name}_numpy_ms"], 0.1), 1)
        truth = [{ids[i] for i in best(vectors, query)} for query in queries]
        shares = [len(a & b) / len(b) for a, b in zip(found[name][1:], truth, strict=True)]
        result[f"{name}_recall"] = round(float(np.mean(shares)), 4)
    store.close()
    return result


def peak_mb() -> int:
    """Most memory that this process has had so far, in megabytes."""
    # Not getrusage's: a process that was just started is told the peak of the one that started it.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return round(int(line.split()[1]) * 1024 / 1e6)


def folders(store: str | None) -> Iterator[str]:
    """The store given, or one in a folder that is gone afterwards."""
    if store is not None:
        yield store
        return
    with tempfile.TemporaryDirectory() as folder:
        yield str(Path(folder) / "store")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--store", help="URI of a store that does not exist yet; it is left there")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rows < 1000:
        parser.error(f"--rows is {args.rows}, expected 1000 or more")
    if args.measure:
        print(json.dumps(measure(args.store, args.dimension, args.queries)))
        return
    for uri in folders(args.store):
        result = {"rows": args.rows, "dimension": args.dimension, **fill(uri, args.rows, args.dimension)}
        options = ["--dimension", str(args.dimension), "--queries", str(args.queries)]
        command = [sys.executable, __file__, "--measure", "--store", uri, *options]
        answer = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
        print(json.dumps(result | json.loads(answer)))


if __name__ == "__main__":
    main()
