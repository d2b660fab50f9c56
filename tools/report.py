#!/usr/bin/env python3
"""Writes the HTML reports of a run again, from the stored results of its evaluations.

    python tools/report.py output/prw --hardest 30 --spread 0

For each test set, RUN_DIR/inference/<test set>/report.html is made from results.json, breakdown.json and queries.json
beside it, as in the evaluation unless TEST.PERSON_SEARCH.REPORT is False. Only the frames shown are read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from person_search.data.registration import registered_records
from person_search.engine.run_folder import config_of_run, evaluated_sets
from person_search.errors import DatasetError, exit_status
from person_search.report import MAX_STRIPS, NUM_HARDEST, NUM_SPREAD, write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 2 if a report could not be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="OUTPUT_DIR of the training or evaluation")
    for name, default, words in (
        ("--hardest", NUM_HARDEST, "queries of lowest average precision"),
        ("--spread", NUM_SPREAD, "further queries from the best to the worst"),
    ):
        parser.add_argument(name, metavar="N", type=int, default=default, choices=range(MAX_STRIPS + 1),
                            help=f"{words} that are shown (0 to {MAX_STRIPS}, default {default})")  # fmt: skip
    args = parser.parse_args(arguments)
    return exit_status(lambda: write_reports(args.run_dir, args.hardest, args.spread))


def write_reports(run_dir: Path, hardest: int, spread: int) -> None:
    """Writes the report of each evaluation of a run, and prints its path."""
    config_of_run(run_dir)  # registers the run's custom datasets
    evaluations = evaluated_sets(run_dir)
    if not evaluations:
        raise DatasetError(f"{run_dir}/inference has no evaluation: run train_net.py with --eval-only first")
    for test_set, folder in evaluations.items():
        print(write_report(folder, registered_records(test_set), hardest, spread))


if __name__ == "__main__":
    sys.exit(main())
