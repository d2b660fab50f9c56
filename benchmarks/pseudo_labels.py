"""Time and memory of the cluster labels of one epoch; prints one JSON line.

    python benchmarks/pseudo_labels.py PROBLEM.npz [--out LABELS.npz] [--device cpu|cuda]
    python benchmarks/pseudo_labels.py --simulate 18048

PROBLEM.npz holds `feature` (N, d), `image` (N,) integers or strings, and optionally `feature2` (N, d), the same persons
one epoch later, clustered with the threshold learnt at the first. LABELS.npz then holds `labels1` (N,), `labels2` (N,)
where there is a second epoch, and `threshold`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from person_search.errors import DatasetError, PersonSearchError
from person_search.io import replacing
from person_search.labels import SelfPacedDBSCAN
from person_search.labels.self_paced import CLUSTERERS
from process_memory import peak_mb

Problem = Mapping[str, NDArray]

# Shape of the simulated features, read off features of an early epoch: norm of their common mean, decay of their
# spectrum, share of a feature's variance that tells the person, and how often a person is seen.
MEAN_NORM = 0.43
SPECTRUM_DECAY = 0.35
PERSON_SHARE = 0.25
MEAN_SIGHTINGS = 10
MEAN_PERSONS_PER_IMAGE = 3


def simulate(count: int, seed: int, dimension: int = 256) -> Problem:
    """Draws a problem of `count` boxes: persons seen a varying number of times, in images of about three persons.

    Returns:
        `feature` (N, d) float32 of unit length, `image` (N,) int64, `person` (N,) int64, `camera` (N,) int64.
    """
    random = np.random.default_rng(seed)
    spectrum = (1 + np.arange(dimension)) ** -SPECTRUM_DECAY
    spectrum /= np.linalg.norm(spectrum)
    mean = random.standard_normal(dimension) * spectrum
    mean *= MEAN_NORM / np.linalg.norm(mean)
    sizes = 1 + random.poisson(MEAN_PERSONS_PER_IMAGE - 1, count)
    image = np.repeat(np.arange(count), sizes)[:count]
    persons = max(1, count // MEAN_SIGHTINGS)
    weight = random.lognormal(0, 1, persons)
    person = random.choice(persons, count, p=weight / weight.sum())
    look = random.standard_normal((persons, dimension)).astype(np.float32)
    # Some sightings show the person clearly, others hardly.
    clarity = random.beta(2, 2 * (1 - PERSON_SHARE) / PERSON_SHARE, (count, 1)).astype(np.float32)
    feature = np.sqrt(1 - clarity) * random.standard_normal((count, dimension), dtype=np.float32)
    feature += np.sqrt(clarity) * look[person]
    feature *= (spectrum * np.sqrt(1 - MEAN_NORM**2)).astype(np.float32)
    feature += mean.astype(np.float32)
    feature /= np.linalg.norm(feature, axis=1, keepdims=True)
    return {"feature": feature, "image": image, "person": person, "camera": image % 6}


def load(path: Path) -> Problem:
    """Reads and checks a problem file.

    Raises:
        DatasetError: the file is missing or damaged, or an array is missing or has the wrong shape or type.
    """
    if not path.is_file():
        raise DatasetError(f"{path} is no file: give an .npz file with the arrays feature and image")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            problem = {name: arrays[name] for name in ("feature", "image", "feature2") if name in arrays}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise DatasetError(f"{path} cannot be read as an .npz file of plain arrays: {error}") from error
    for name in ("feature", "image"):
        if name not in problem:
            raise DatasetError(f"{path} has no array {name!r}: it needs feature (N, d) and image (N,)")
    shape = problem["feature"].shape
    expected = {"feature": shape, "feature2": shape, "image": shape[:1]}
    if len(shape) != 2:
        raise DatasetError(f"feature in {path} has shape {shape}, expected (N, d)")
    for name, array in problem.items():
        if array.shape != expected[name]:
            raise DatasetError(f"{name} in {path} has shape {array.shape}, expected {expected[name]}")
        if name != "image" and array.dtype.kind not in "fiu":
            raise DatasetError(f"{name} in {path} has type {array.dtype}, expected real numbers")
    return problem


def measure(model: SelfPacedDBSCAN, problem: Problem, feature: str, device: str) -> tuple[NDArray, dict[str, float]]:
    """Labels of one epoch, and seconds by stage, in all, and of all CPU cores together."""
    features = torch.from_numpy(problem[feature]).to(device)
    start, start_cpu = time.perf_counter(), time.process_time()
    labels = model.fit(features, problem["image"])
    seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_cpu}
    return labels, {**model.timings, **seconds}


def agreement(labels: NDArray, path: Path) -> float:
    """Adjusted Rand index of labels (N,) with `labels1` of a file that this program wrote."""
    from sklearn.metrics import adjusted_rand_score

    try:
        with np.load(path, allow_pickle=False) as arrays:
            others = arrays["labels1"]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError, AttributeError) as error:
        raise DatasetError(f"{path} cannot be read as a labels file with the array labels1: {error}") from error
    if others.shape != labels.shape:
        raise DatasetError(f"labels1 in {path} has shape {others.shape}, expected {labels.shape}")
    return float(adjusted_rand_score(others, labels))


def run(args: argparse.Namespace) -> dict[str, object]:
    """Clusters the problem that the arguments name and returns the figures of the JSON line."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise DatasetError("--device cuda: this machine has no usable GPU, use --device cpu")
    if args.out and not args.out.parent.is_dir():
        raise DatasetError(f"--out {args.out}: the folder {args.out.parent} does not exist")
    problem = load(args.problem) if args.problem else simulate(args.simulate, args.seed)
    model = SelfPacedDBSCAN(clusterer=args.clusterer, progress=args.progress)
    results: dict[str, object] = {}
    figures: dict[str, object] = {"n": len(problem["feature"])}
    for number, feature in enumerate(("feature", "feature2"), start=1):
        if feature in problem:
            labels, seconds = measure(model, problem, feature, args.device)
            sizes = np.bincount(labels)
            counts = {"clusters": int((sizes > 1).sum()), "singletons": int((sizes == 1).sum())}
            epoch = {**{name: round(value, 3) for name, value in seconds.items()}, **counts}
            figures.update(epoch if number == 1 else {"epoch2": epoch})
            results[f"labels{number}"] = labels
    results["threshold"] = np.float64(np.nan if model.threshold is None else model.threshold)
    figures["threshold"] = model.threshold
    if args.compare:
        figures["adjusted_rand_index"] = agreement(results["labels1"], args.compare)
    if args.out:
        with replacing(args.out) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **results)
    figures.update(peak_mb=round(peak_mb()), device=args.device, threads=torch.get_num_threads())
    if args.device == "cuda":
        figures["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return figures


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", type=Path, nargs="?", metavar="PROBLEM.npz", help="arrays feature, image, feature2")
    parser.add_argument("--simulate", type=int, metavar="N", help="draw a problem of N boxes instead")
    parser.add_argument("--seed", type=int, default=0, help="of --simulate")
    parser.add_argument("--out", type=Path, metavar="LABELS.npz", help="write the labels")
    parser.add_argument(
        "--compare", type=Path, metavar="LABELS.npz", help="add the adjusted Rand index with its labels1"
    )
    parser.add_argument("--clusterer", choices=tuple(CLUSTERERS), default="dbscan")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--progress", action="store_true", help="show progress and stages on stderr")
    args = parser.parse_args(arguments)
    if (args.problem is None) == (args.simulate is None):
        parser.error("give either PROBLEM.npz or --simulate N")
    if args.simulate is not None and args.simulate < 1:
        parser.error(f"--simulate {args.simulate}: expected a number of boxes >= 1")
    return args


def main() -> None:
    args = parse()
    if args.progress:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        print(json.dumps(run(args)))
    except (PersonSearchError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
