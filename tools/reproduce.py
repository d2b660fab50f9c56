#!/usr/bin/env python3
"""Regenerates the paper's tables and figures, and its sensitivity to each parameter, on any registered dataset.

    python tools/reproduce.py --table 1 --dataset prw
    python tools/reproduce.py --table 3 --dataset synthetic_demo --seeds 3 --jobs 2
    python tools/reproduce.py --table 4 --config-file my_sets.yaml --output output/mine --epochs 12
    python tools/reproduce.py --sweep m t_s beta=-0.2,-0.1 --dataset prw
    python tools/reproduce.py --figure 6 --dataset prw --runs baseline ssl "no masks=output/no_masks"

A table or a sweep trains each of its rows with each seed through train_net.py and prints the commands. Started again,
it skips what is finished, continues what was cut off, and repeats what was trained with another config. A figure is
drawn from rows that have been trained, or (1) from annotations. KEY VALUE pairs at the end change the config that every
row starts from. Rows and figures: docs/reproduction.md.
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
    """Runs the command and returns its exit status: 0, 1 where a run failed, 2 for an error, 130 for an
    interruption."""
    args = _parser().parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    command = f"python tools/reproduce.py {shlex.join(words)}"
    return exit_status(lambda: run(args, command), "interrupted; the same command continues")


def run(args: argparse.Namespace, command: str) -> bool:
    """Does what the parsed arguments ask for; False where a run failed."""
    if late := next((word for word in args.options if word.startswith("--")), ""):
        raise ConfigError(f"{late} stands behind KEY VALUE pairs: give it before {args.options[0]}")
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
        help="rows of the output folder that a figure compares, or TITLE=FOLDER (default: those of table 1)",
    )
    parser.add_argument("--dataset", default="", help="prefix of <dataset>_train and _test, or name of a config file")
    parser.add_argument("--train", metavar="NAME", default="", help="training set, where it is not <dataset>_train")
    parser.add_argument("--test", metavar="NAME", default="", help="test set, where it is not <dataset>_test")
    parser.add_argument("--config-file", metavar="FILE", default="", help="config to use instead of the dataset's")
    parser.add_argument("--seeds", metavar="N", type=_positive, default=3, help="trainings of each row (default 3)")
    parser.add_argument("--epochs", metavar="E", type=_positive, default=0, help="epochs (default: the config's)")
    parser.add_argument("--jobs", metavar="J", type=_positive, default=1, help="trainings side by side (default 1)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="default output/reproduction/<dataset>")
    parser.add_argument("options", metavar="KEY VALUE", nargs=argparse.REMAINDER, help="changes of the config")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _say(line: str) -> None:
    print(line, flush=True)


def interrupt(*_: Any) -> None:
    """Handles a signal as Ctrl-C is handled."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Whatever ends this program ends its trainings too, which continue when it is started again.
    for sign in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(sign) is not signal.SIG_IGN:  # as under nohup
            signal.signal(sign, interrupt)
    sys.exit(main())
