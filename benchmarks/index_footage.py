#!/usr/bin/env python3
"""Speed of indexing footage, end to end: prints one JSON line.

python benchmarks/index_footage.py video.mp4 --weights model.pth --every 0.5s

frames_per_second counts the frames that are looked at. decoding, network and writing are the seconds in each of the
three, as shares of the wall time; they run at the same time, so that their sum may exceed 1. decoding_alone is the rate
at which the same frames come where nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time

import torch
from person_search.search.cli import positive, seconds
from person_search.search.index import IndexOptions, index
from person_search.search.searcher import PersonSearcher
from person_search.search.sources import find_sources, read_photo, video_frames
from person_search.search.store import open_store


def main() -> None:
    """Indexes into a new store in a temporary folder, or into the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--config-file")
    parser.add_argument("--device")
    parser.add_argument("--store", help="URI of a store that does not hold these sources yet")
    parser.add_argument("--every", type=seconds, default=seconds("0.5s"))
    parser.add_argument("--batch-size", type=positive, default=1)
    parser.add_argument("--readers", type=positive, default=2)
    args = parser.parse_args()
    sources = find_sources(args.sources)
    searcher = PersonSearcher(args.config_file, args.weights, device=args.device)
    options = IndexOptions(every=args.every, batch_size=args.batch_size, readers=args.readers)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(args.store or os.path.join(folder, "store"), info=searcher.info, create=True)
        alone = decoding_alone(sources, args.every)
        report = index(searcher, store, sources, options)
        store.close()
    print(
        json.dumps({
            "benchmark": "index_footage",
            "sources": report.sources,
            "frames": report.frames,
            "detections": report.detections,
            "seconds": round(report.seconds, 2),
            "frames_per_second": round(report.frames / report.seconds, 2),
            "decoding": round(report.decoding / report.seconds, 3),
            "network": round(report.network / report.seconds, 3),
            "writing": round(report.writing / report.seconds, 3),
            "decoding_alone": round(alone, 1),
            "every": str(args.every),
            "batch_size": args.batch_size,
            "device": searcher.device,
            "threads": torch.get_num_threads(),
        })
    )  # fmt: skip


def decoding_alone(sources: list, every) -> float:
    """Frames a second that are looked at, decoded and turned to RGB, without a network."""
    start, frames = time.perf_counter(), 0
    for source in sources:
        found = [read_photo(source.address)] if source.kind == "photo" else video_frames(source.address, every)
        frames += sum(1 for _ in found)
    return frames / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
