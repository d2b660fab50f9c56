#!/usr/bin/env python3
"""Generates a synthetic person search dataset: rendered streets with walking persons, their identities and masks.

    python datasets/prepare_synthetic.py --preset demo
    python datasets/prepare_synthetic.py --preset hard --workers 4 --train-frames 2000 --seed 7
    python datasets/prepare_synthetic.py --preset tiny --out /tmp/data --preview sheet.png

writes synthetic-<name>-<digest>/ below --out; the digest stands for all settings, and a finished dataset with the same
settings is reused. Presets need no command: synthetic_demo_train, synthetic_demo_test and the others are generated on
first use. Presets: tiny (tests), demo (trains in minutes on a CPU), town, hard.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import cv2
from person_search.data.catalog import dataset_root
from person_search.errors import DatasetError, exit_status
from person_search.io import replacing
from person_search.synthetic import PRESETS, SyntheticConfig, generate
from person_search.synthetic.preview import contact_sheet, summarize


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    args = _parser().parse_args(arguments)
    return exit_status(lambda: run(args), "interrupted; nothing was left behind")


def run(args: argparse.Namespace) -> None:
    """Generates the dataset that the parsed arguments describe, and prints its counts and its folder."""
    settings = {field.name: getattr(args, field.name) for field in fields(SyntheticConfig)}
    config = replace(PRESETS[args.preset], **{name: value for name, value in settings.items() if value is not None})
    folder = generate(config, args.out or dataset_root(), workers=args.workers)
    summary = summarize(folder)
    if args.preview is not None:
        write_preview(folder, args.preview)
    for split, counts in summary.items():
        print(f"{split}: {json.dumps(counts)}")
    print(folder)


def write_preview(folder: Path, file: Path) -> None:
    """Writes a contact sheet of the training frames as PNG, atomically.

    Raises:
        DatasetError: the file cannot be written.
    """
    _, data = cv2.imencode(".png", contact_sheet(folder)[..., ::-1])
    if not file.parent.is_dir():
        raise DatasetError(f"--preview {file} cannot be written: there is no folder {file.parent}")
    with replacing(file) as temporary:
        temporary.write_bytes(data.tobytes())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="demo")
    parser.add_argument("--out", type=Path, metavar="DIR", help="by default $DETECTRON2_DATASETS, else datasets")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that render")
    parser.add_argument("--preview", type=Path, metavar="FILE.png", help="write a contact sheet with boxes and ids")
    group = parser.add_argument_group("settings", "in place of the preset's; SyntheticConfig says what they mean")
    for field in fields(SyntheticConfig):
        option = "--" + field.name.replace("_", "-")
        kind = type(field.default)
        group.add_argument(option, type=kind, metavar=kind.__name__.upper())
    return parser


if __name__ == "__main__":
    sys.exit(main())
