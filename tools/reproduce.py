#!/usr/bin/env python3
"""Reproduces tables, figures and parameter sweeps of the paper on any registered dataset.

    python tools/reproduce.py --table 1 --dataset prw
    python tools/reproduce.py --table 3 --dataset synthetic_demo --seeds 3 --jobs 2
    python tools/reproduce.py --table 4 --config-file my_sets.yaml --output output/mine --epochs 12
    python tools/reproduce.py --sweep m t_s beta=-0.2,-0.1 --dataset prw
    python tools/reproduce.py --figure 6 --dataset prw --runs baseline ssl "no masks=output/no_masks"

Tables and sweeps train each of their rows with each seed through train_net.py, and print the commands. When started
again, finished trainings are skipped, interrupted ones continue, and those with another config are repeated. Figures
are drawn from trained rows, or (1) from annotations. KEY VALUE pairs at the end change the config that all rows start
from. For rows and figures see docs/reproduction.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from person_search.errors import ConfigError, exit_status
from person_search.reproduction.commands import Setting, make_sweep, make_table
from person_search.reproduction.configs import base_config
from person_search.reproduction.figures import FIGURES
from person_search.reproduction.rows import PARAMETERS, TABLES

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "projects" / "SSL" / "configs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 1 if a run failed, 2 for an error, 130 if interrupted."""
    args = _parser().parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    command = f"python tools/reproduce.py {shlex.join(words)}"
    return exit_status(lambda: run(args, command), "interrupted; the same command continues")


def run(args: argparse.Namespace, command: str) -> bool:
    """Runs the parsed arguments; returns False if a run failed."""
    if late := next((word for word in args.options if word.startswith("--")), ""):
        raise ConfigError(f"{late} follows KEY VALUE pairs: put it before {args.options[0]}")
    if not (args.dataset or args.config_file or args.train):
        raise ConfigError("name the data: --dataset prw, --config-file FILE or --train NAME --test NAME")
    base = base_config(CONFIGS, args.dataset, args.config_file, args.train, args.test, args.epochs, args.options)
    name = args.dataset or (Path(args.config_file).stem if args.config_file else args.train)
    output = args.output or Path("output") / "reproduction" / name
    script = Path(os.path.relpath(REPOSITORY / "train_net.py"))
    setting = Setting(base, output, CONFIGS, script, args.seeds, args.jobs, command)
    if args.table:
        return make_table(args.table, setting, _say)
    if args.figure:
        for path in FIGURES[args.figure](base, output, args.runs):
            _say(str(path))
        return True
    return make_sweep(args.sweep, setting, _say)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", choices=sorted(TABLES), help="train the rows of this table")
    what.add_argument(
        "--sweep", nargs="*", metavar="NAME[=VALUES]", help=f"sensitivity to {', '.join(PARAMETERS)} (default: all)"
    )
    what.add_argument("--figure", choices=sorted(FIGURES), help="draw this figure")
    parser.add_argument(
        "--runs",
        nargs="+",
        metavar="ROW",
        default=[],
        help="rows of the output folder to compare in a figure, or TITLE=FOLDER (default: those of table 1)",
    )
    parser.add_argument("--dataset", default="", help="prefix of <dataset>_train and _test, or name of a config file")
    parser.add_argument("--train", metavar="NAME", default="", help="training set, if not <dataset>_train")
    parser.add_argument("--test", metavar="NAME", default="", help="test set, if not <dataset>_test")
    parser.add_argument("--config-file", metavar="FILE", default="", help="config to use instead of the dataset's")
    parser.add_argument("--seeds", metavar="N", type=_positive, default=3, help="trainings per row (default 3)")
    parser.add_argument("--epochs", metavar="E", type=_positive, default=0, help="epochs (default: the config's)")
    parser.add_argument("--jobs", metavar="J", type=_positive, default=1, help="parallel trainings (default 1)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="default output/reproduction/<dataset>")
    parser.add_argument("options", metavar="KEY VALUE", nargs=argparse.REMAINDER, help="changes of the config")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of 1 or more")
    return int(text)


def _say(line: str) -> None:
    print(line, flush=True)


def interrupt(*_: Any) -> None:
    """Handles a signal like Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Whatever ends this program also ends its trainings, which continue when it is started again.
    for sign in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(sign) is not signal.SIG_IGN:  # as under nohup
            signal.signal(sign, interrupt)
    sys.exit(main())
