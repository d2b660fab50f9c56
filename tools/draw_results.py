#!/usr/bin/env python3
"""Draws the results of a finished or running training, or of an evaluation, from its output folder.

    python tools/draw_results.py output/prw --scenes 3

RUN_DIR/pictures gets loss_curves.png and pseudo_labels.png, from metrics.json, and for each test set
<test set>/search_results.png, from inference/<test set>/queries.json: the five best detections of some queries, from
the best to the worst. With --scenes, <test set>/search_scenes_1.png ... show whole frames as well.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from person_search.data.registration import registered_records
from person_search.engine.run_folder import config_of_run, evaluated_sets
from person_search.errors import exit_status
from person_search.report.pictures import draw_search_results
from person_search.report.training_curves import draw_curves


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 2 if something could not be drawn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="OUTPUT_DIR of the training or evaluation")
    parser.add_argument("--queries", metavar="N", type=_count, default=6, help="queries in a sheet (default 6)")
    parser.add_argument("--scenes", metavar="N", type=_count, default=0, help="queries drawn as scenes (default 0)")
    args = parser.parse_args(arguments)
    return exit_status(lambda: print(*draw_run(args.run_dir, args.queries, args.scenes), sep="\n"))


def draw_run(run_dir: Path, queries: int, scenes: int) -> list[Path]:
    """Draws everything that the output folder of a run has data for.

    Args:
        run_dir: OUTPUT_DIR of the run.
        queries: rows of each sheet of search results.
        scenes: number of queries of each test set to draw as whole scenes.

    Returns:
        paths of the pictures, in run_dir/pictures.

    Raises:
        DatasetError: there is nothing to draw, or a file is damaged.
        ConfigError: the run's config does not fit this version, or names an unregistered dataset.
    """
    cfg = config_of_run(run_dir)
    folder, metrics = run_dir / "pictures", run_dir / "metrics.json"
    searches = evaluated_sets(run_dir)
    drawn = []
    # Evaluations have no metrics.json, and that of a training that has just begun is empty.
    if not searches or (metrics.is_file() and metrics.stat().st_size):
        drawn += draw_curves(metrics, folder, cfg.SSL.CLUSTERING.PERIOD)
    for test_set, evaluation in searches.items():
        file = evaluation / "queries.json"
        drawn += draw_search_results(file, registered_records(test_set), folder / test_set, queries, scenes)
    return drawn


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of 0 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
