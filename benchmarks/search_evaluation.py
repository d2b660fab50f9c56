#!/usr/bin/env python3
"""Times the search evaluation on a file of detections, or on a simulated problem of a dataset's size.

usage: python benchmarks/search_evaluation.py PROBLEM.npz [--cross-camera] [--cbgm K1 K2] [--detection]
       python benchmarks/search_evaluation.py PROBLEM.npz --protocol TestG100.mat [TestG500.mat ...]
       python benchmarks/search_evaluation.py --simulate {prw,cuhk} [--save PROBLEM.npz]

PROBLEM.npz is what the evaluator or `save_problem` writes. One JSON line goes to stdout: the metrics as fractions,
`seconds` for the evaluation without reading or simulating, and `peak_mb`, the most memory beyond that of the loaded
libraries. The metrics of a simulated problem say nothing about any model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from person_search.data import matlab
from person_search.data.records import BoxXYXY, Gallery
from person_search.errors import DatasetError, PersonSearchError
from person_search.evaluation.metrics import SearchOptions, evaluate_detection, evaluate_galleries
from person_search.evaluation.problem import (
    Galleries,
    SearchProblem,
    offsets_of,
    own_frame_galleries,
    with_galleries,
)
from person_search.evaluation.protocols import CUHK_SYSU_SIZES, listed_galleries
from person_search.evaluation.rescoring import ContextMatching, Reranking
from person_search.evaluation.storage import load_problem, save_problem
from process_memory import current_mb, peak_mb


def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    if (args.problem is None) == (args.simulate is None):
        sys.exit("error: give either PROBLEM.npz or --simulate; see --help")
    if args.seed < 0:
        sys.exit(f"error: --seed {args.seed}: expected 0 or more")
    if args.shortlist is not None and not args.reranking:
        sys.exit("error: --shortlist belongs to --reranking; give both or neither")
    loaded = current_mb()
    try:
        problem = load_problem(args.problem) if args.problem else _SIMULATIONS[args.simulate](args.seed)
        if args.protocol:
            problem = _with_protocol_files(problem, args.protocol)
        _check(problem, args)
        if args.save:
            save_problem(problem, args.save)
        print(json.dumps(measure(problem, args, loaded), allow_nan=False))
    except PersonSearchError as error:
        sys.exit(f"error: {error}")


def _check(problem: SearchProblem, args: argparse.Namespace) -> None:
    """Refuses what would have no metrics."""
    where = args.problem or "simulation"
    if not problem.galleries:
        raise DatasetError(
            f"{where} has no gallery, nor annotated boxes to make one of: give its --protocol TestG100.mat"
        )
    main_gallery = problem.gallery_name("cross_camera" if args.cross_camera else None)
    if not problem.galleries[main_gallery].target_count.any():
        raise DatasetError(
            f"{where}: no query has a match in the gallery {main_gallery}, so there is nothing to measure"
        )
    if args.detection and not len(problem.gt_frame):
        raise DatasetError(f"{where} has no annotated boxes, so there are no detection figures: leave out --detection")


def measure(problem: SearchProblem, args: argparse.Namespace, loaded: float) -> dict[str, Any]:
    """What is printed for `problem`, evaluated as the arguments say; `loaded`: memory at the start, in MiB."""
    shortlist = Reranking.shortlist if args.shortlist is None else args.shortlist
    options = SearchOptions(
        score_threshold=args.score_threshold,
        score_weighted=args.score_weighted,
        context_matching=ContextMatching(*args.cbgm, args.query_nms) if args.cbgm else None,
        reranking=Reranking(shortlist=shortlist) if args.reranking else None,
    )
    main_gallery = problem.gallery_name("cross_camera" if args.cross_camera else None)
    listed = problem.galleries[main_gallery].frame is not None
    names = list(problem.galleries) if listed else [main_gallery]
    start = time.perf_counter()
    results = evaluate_galleries(problem, options, names, progress=sys.stderr.isatty())
    detection = evaluate_detection(problem, args.score_threshold) if args.detection else None
    seconds = time.perf_counter() - start
    line: dict[str, Any] = {"gallery": main_gallery, **results[main_gallery].metrics()}
    if len(results) > 1:
        line["galleries"] = {name: result.metrics() for name, result in results.items()}
    if detection:
        line |= asdict(detection)
    return line | {
        "options": options.describe(),
        "frames": len(problem.frame_name),
        "detections": len(problem.det_frame),
        "queries": len(problem.query_frame),
        "simulated": args.simulate is not None,
        "seconds": round(seconds, 4),
        "peak_mb": round(peak_mb() - loaded, 1),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", nargs="?", type=Path, metavar="PROBLEM.npz")
    parser.add_argument("--simulate", choices=sorted(_SIMULATIONS), help="a random problem of the dataset's size")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--save", type=Path, help="also write the problem to this file")
    parser.add_argument("--protocol", type=Path, nargs="+", metavar="TestG.mat", help="galleries of CUHK-SYSU")
    parser.add_argument("--cross-camera", action="store_true", help="search frames of other cameras only")
    parser.add_argument("--cbgm", type=int, nargs=2, metavar=("K1", "K2"), help="context bipartite graph matching")
    parser.add_argument("--query-nms", type=float, default=1.0, help="of CBGM: IoU above which it is the query")
    parser.add_argument("--reranking", action="store_true", help="k-reciprocal re-ranking")
    parser.add_argument("--shortlist", type=int, help=f"detections that are re-ranked ({Reranking.shortlist})")
    parser.add_argument("--score-weighted", action="store_true", help="similarity times detection score")
    parser.add_argument("--score-threshold", type=float, default=0.5)
    parser.add_argument("--detection", action="store_true", help="also the detection figures")
    return parser


def _with_protocol_files(problem: SearchProblem, files: list[Path]) -> SearchProblem:
    """`problem` with a gallery for each protocol file, named after its size."""
    frame_of = {name: frame for frame, name in enumerate(problem.frame_name)}
    galleries = {}
    for file in files:
        names, rows = _read_protocol(file, len(problem.query_frame))
        for query, (name, frame) in enumerate(zip(names, problem.query_frame, strict=True)):
            if name != problem.frame_name[frame]:
                raise DatasetError(
                    f"{file}: query {query} is of frame {name}, in the problem it is of "
                    f"{problem.frame_name[frame]}; give the protocol that the problem was made for"
                )
        galleries[file.stem.removeprefix("TestG")] = listed_galleries(rows, frame_of, str(file))
    return with_galleries(problem, galleries)


def _read_protocol(file: Path, num_queries: int) -> tuple[list[str], list[Gallery]]:
    """Frame name and gallery of each of the first queries of a TestG file."""
    rows = matlab.structs(matlab.load_variable(file, (file.stem,)))[:num_queries]
    if len(rows) < num_queries:
        raise DatasetError(f"{file}: has {len(rows)} queries, the problem {num_queries}")
    names, galleries = [], []
    for number, row in enumerate(rows, 1):
        with matlab.naming(file, f"{file.stem}({number})"):
            names.append(matlab.text(matlab.structs(row["Query"])[0]["imname"]))
            entries = [(matlab.text(e["imname"]), matlab.box(e["idlocate"])) for e in matlab.structs(row["Gallery"])]
            boxes: dict[str, BoxXYXY] = {}
            for name, box in entries:
                if box is not None:
                    boxes.setdefault(name, (box[0], box[1], box[0] + box[2], box[1] + box[3]))
            galleries.append(Gallery(tuple(name for name, _ in entries), boxes))
    return names, galleries


def simulate_prw(
    seed: int = 0,
    num_frames: int = 6112,
    num_detections: int = 32_000,
    num_queries: int = 2057,
    num_persons: int = 450,
    dimension: int = 256,
) -> SearchProblem:
    """A problem of PRW's size: six cameras, galleries "all_cameras" and "cross_camera".

    Args:
        seed: of the random numbers.
        num_frames, num_detections, num_queries, num_persons, dimension: sizes; four boxes are annotated in a frame on
            average, three in five with an identity.
    """
    rng = np.random.default_rng(seed)
    problem = _simulate(rng, num_frames, num_detections, num_queries, num_persons, 4 * num_frames, dimension)
    problem = replace(problem, frame_camera=np.arange(num_frames) % 6)
    galleries = {
        "all_cameras": own_frame_galleries(problem, cross_camera=False),
        "cross_camera": own_frame_galleries(problem, cross_camera=True),
    }
    return replace(problem, galleries=galleries)


def simulate_cuhk_sysu(
    seed: int = 0,
    num_frames: int = 6978,
    num_detections: int = 32_000,
    num_queries: int = 2900,
    dimension: int = 256,
) -> SearchProblem:
    """A problem of CUHK-SYSU's size with the galleries "50", "100", "500", "1000", "2000" and "4000".

    Args:
        seed: of the random numbers.
        num_frames, num_detections, num_queries, dimension: sizes; there is a person for each query, shown in four
            frames on average. Galleries larger than the number of frames are left out.
    """
    rng = np.random.default_rng(seed)
    problem = _simulate(rng, num_frames, num_detections, num_queries, num_queries, 4 * num_frames, dimension)
    everywhere = own_frame_galleries(problem, cross_camera=False)
    return replace(problem, galleries=_listed(rng, problem, everywhere), main_gallery="100")


def _simulate(
    rng: np.random.Generator,
    num_frames: int,
    num_detections: int,
    num_queries: int,
    num_persons: int,
    num_boxes: int,
    dimension: int,
) -> SearchProblem:
    center = rng.standard_normal((num_persons, dimension), np.float32)
    # All people look somewhat alike, as they do to a network: similarities of distractors are about a half.
    center += rng.standard_normal(dimension, np.float32)
    gt_frame = np.sort(rng.integers(num_frames, size=num_boxes))
    gt_person = np.where(rng.random(num_boxes) < 0.6, rng.integers(num_persons, size=num_boxes), -1)
    gt_box = _boxes(rng, num_boxes)
    source = rng.permutation(np.arange(num_detections) % num_boxes)
    source = source[np.argsort(gt_frame[source], kind="stable")]
    # Some detections lie off their box: false positives.
    off = np.where(rng.random(num_detections) < 0.2, 2.0, 0.02)[:, None]
    det_box = gt_box[source] + off * rng.uniform(-40, 40, (num_detections, 4))
    person = np.where(gt_person[source] < 0, rng.integers(num_persons, size=num_detections), gt_person[source])
    spread = rng.uniform(0.5, 4, (num_detections, 1)).astype(np.float32)
    labelled = np.flatnonzero(gt_person >= 0)
    query = np.sort(rng.choice(labelled, num_queries, replace=num_queries > len(labelled)))
    return SearchProblem(
        det_frame=gt_frame[source],
        det_box=det_box.astype(np.float32),
        det_score=rng.uniform(0.45, 1, num_detections).astype(np.float32),
        det_feature=_unit(center[person] + spread * rng.standard_normal((num_detections, dimension), np.float32)),
        frame_name=tuple(f"frame_{number:05}.jpg" for number in range(num_frames)),
        gt_frame=gt_frame,
        gt_box=gt_box,
        gt_person_id=gt_person,
        query_frame=gt_frame[query],
        query_box=gt_box[query],
        query_person_id=gt_person[query],
        query_feature=_unit(center[gt_person[query]] + rng.standard_normal((num_queries, dimension), np.float32)),
    )


def _boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    corner = rng.uniform(0, (1500, 500), (number, 2))
    height = rng.uniform(80, 500, number)
    return np.column_stack([corner, corner[:, 0] + 0.4 * height, corner[:, 1] + height])


def _listed(rng: np.random.Generator, problem: SearchProblem, everywhere: Galleries) -> Mapping[str, Galleries]:
    """Galleries of each size: the frames with the person and then others, the smaller within the greater."""
    num_frames, num_queries = len(problem.frame_name), len(problem.query_frame)
    sizes = [size for size in map(int, CUHK_SYSU_SIZES) if size < num_frames]
    frames: dict[int, list[np.ndarray]] = {size: [] for size in sizes}
    for query in range(num_queries):
        targets = everywhere.target_frame[everywhere.target_offset[query] : everywhere.target_offset[query + 1]]
        others = np.setdiff1d(rng.permutation(num_frames), [*targets, problem.query_frame[query]])
        ordered = np.concatenate([targets, rng.permutation(others)])
        for size in sizes:
            frames[size].append(ordered[:size].astype(np.int32))
    return {
        str(size): replace(
            everywhere,
            excluded_frame=None,
            frame_offset=offsets_of([len(listed) for listed in frames[size]]),
            frame=np.concatenate(frames[size]),
        )
        for size in sizes
    }


def _unit(feature: np.ndarray) -> np.ndarray:
    return feature / np.linalg.norm(feature, axis=1, keepdims=True)


_SIMULATIONS = {"prw": simulate_prw, "cuhk": simulate_cuhk_sysu}

if __name__ == "__main__":
    main()
