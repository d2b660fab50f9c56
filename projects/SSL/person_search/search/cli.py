"""The command line: `person-search index`, `search`, `serve`, `adapt`, `export`, `forget` and `info`.

This module imports the standard library alone, so that `--help` answers at once; a command imports what it needs.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from fractions import Fraction

_STORE = "folder or s3://bucket/prefix (LanceDB), or http://host:port/collection (Milvus)"
_TIME = "a time without a zone is this machine's local time"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0, 2 for an error that the message explains, 130 if interrupted."""
    args = parse_arguments(argv)
    from . import commands  # says what is missing where the extra is not installed

    return commands.run(args)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of a command; `command` names it."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    # Pictures may follow the box of the picture before: argparse takes positional arguments in one go only.
    if args.command == "search" and rest and not any(word.startswith("-") for word in rest):
        args.queries += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def build_parser() -> argparse.ArgumentParser:
    """Parser of all commands."""
    parser = argparse.ArgumentParser(prog="person-search", description="Finds a person in one's own footage.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_index(commands.add_parser("index", help="detect the persons of photos, videos and live streams"))
    _add_search(commands.add_parser("search", help="find a person by a picture"))
    _add_serve(commands.add_parser("serve", help="open the page to search with"))
    _add_adapt(commands.add_parser("adapt", help="train on footage without annotation, then index it"))
    _add_export(commands.add_parser("export", help="write detections as Parquet, JSON lines or MOT text"))
    _add_forget(commands.add_parser("forget", help="delete detections for good"))
    _add_info(commands.add_parser("info", help="say what a store holds"))
    return parser


# ---------------------------------------------------------------------- arguments of the commands


def _add_model(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument("--weights", required=required, help="checkpoint of a training")
    parser.add_argument("--config-file", help="configuration of the weights, where the checkpoint carries none")
    parser.add_argument("--device", help="such as cuda, cuda:1 or cpu; by default a GPU where there is one")


def _add_filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--camera", action="append", default=[], help="this camera alone; may be repeated")
    parser.add_argument("--since", type=moment, metavar="TIME", help=f"from this time on; {_TIME}")
    parser.add_argument("--until", type=moment, metavar="TIME", help="before this time")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="photo, video, folder of them, or URL of a stream")
    parser.add_argument(
        "--every", type=seconds, default=Fraction(1, 2), metavar="0.5s",
        help="time from one frame that is looked at to the next, or 'all' (default: 0.5s)",
    )  # fmt: skip
    parser.add_argument(
        "--camera", metavar="NAME",
        help="name of the camera, in which {stem} stands for the file's name and {folder} for its folder's (default: "
        "{stem} for videos, {folder} for photos)",
    )  # fmt: skip
    parser.add_argument("--start", type=moment, metavar="TIME", help=f"time of the videos' first frame; {_TIME}")


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Indexes footage. Killed at any moment, the same command goes on where it was; what is indexed already and has "
        "not changed is left alone."
    )
    _add_sampling(parser)
    _add_model(parser, required=True)
    parser.add_argument("--store", required=True, metavar="URI", help=_STORE)
    parser.add_argument(
        "--batch-size", type=positive, help="pictures in one pass of the network (default: CPU 1, GPU 4)"
    )
    parser.add_argument("--readers", type=positive, default=2, help="threads that decode files (default: 2)")
    parser.add_argument(
        "--keep-frames", metavar="FOLDER", help="keep the pictures of live streams in which someone is found"
    )
    parser.add_argument("--for", dest="duration", type=seconds, metavar="60s", help="end live streams after this time")


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.description = "Finds a person. Several pictures of one person are joined to one query."
    parser.add_argument("queries", nargs="+", metavar="QUERY", help="picture of the person, or id of a detection")
    parser.add_argument(
        "--box", nargs=4, type=float, action="append", default=[], metavar=("X0", "Y0", "X1", "Y1"),
        help="where the person is, in pixels: the first box belongs to the first picture, and so on; without one the "
        "only person that is detected is taken",
    )  # fmt: skip
    parser.add_argument("--store", required=True, metavar="URI", help=_STORE)
    _add_model(parser, required=False)
    _add_filter(parser)
    parser.add_argument("--top", type=positive, default=10, help="appearances to show (default: 10)")
    parser.add_argument("--rerank", action="store_true", help="order by k-reciprocal re-ranking")
    parser.add_argument(
        "--wrong", action="append", default=[], metavar="ID", help="id of a detection that is someone else; repeatable"
    )
    parser.add_argument("--jsonl", metavar="FILE", help="also write the appearances as JSON lines; - for the screen")
    parser.add_argument("--html", metavar="FILE", help="also write a sheet of crops to look at")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    from .serve import add_serve_arguments

    add_serve_arguments(parser)


def _add_adapt(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Trains a model on footage that nobody has annotated: a detector draws the boxes, training learns to tell the "
        "persons apart, and the footage is indexed with the result."
    )
    _add_sampling(parser)
    parser.add_argument(
        "--out",
        required=True,
        metavar="FOLDER",
        help="where frames, boxes, model and store go; an interrupted run goes on there",
    )
    parser.add_argument(
        "--boxes", default="coco", metavar="WHENCE",
        help="'coco' (Detectron2's Faster R-CNN), a checkpoint of this project (.pth), or a file of boxes: COCO "
        "results (.json) or MOT detections (.txt); default: coco",
    )  # fmt: skip
    parser.add_argument("--detector-weights", metavar="FILE", help="weights of Detectron2's detector, where not online")
    parser.add_argument("--min-score", type=float, default=0.5, help="score that a box needs (default: 0.5)")
    parser.add_argument(
        "--config-file", help="configuration of the training (default: that of --weights, or a slim one)"
    )
    parser.add_argument("--weights", help="checkpoint that the training starts from")
    parser.add_argument("--epochs", type=positive, help="length of the training (default: the configuration's)")
    parser.add_argument("--device", help="such as cuda or cpu; by default a GPU where there is one")
    parser.add_argument(
        "--set",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="a key of the training's configuration",
    )


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="ends with .parquet, .jsonl or .txt (MOT)")
    parser.add_argument("--store", required=True, metavar="URI", help=_STORE)
    _add_filter(parser)


def _add_forget(parser: argparse.ArgumentParser) -> None:
    parser.description = "Deletes detections and their kept pictures for good; footage files themselves stay."
    parser.add_argument("--store", required=True, metavar="URI", help=_STORE)
    parser.add_argument("--before", type=moment, metavar="TIME", help=f"what is older than this; {_TIME}")
    parser.add_argument("--camera", action="append", default=[], help="what this camera saw; may be repeated")
    parser.add_argument(
        "--person", action="append", default=[], metavar="TRACKLET",
        help="an appearance, by the tracklet that a search names; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--keep-days", type=days, metavar="DAYS",
        help="from now on delete whatever is older, each time footage is indexed or served; 'off' ends that",
    )  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", required=True, metavar="URI", help=_STORE)
    parser.add_argument("--json", action="store_true", help="as JSON")


# ---------------------------------------------------------------------- kinds of values


def seconds(text: str) -> Fraction | None:
    """Seconds that "0.5s", "500ms", "2m" or "2" stand for, exactly; None for "all"."""
    if text == "all":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?", text)
    units = {"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600)}
    value = Fraction(match[1]) * units[match[2] or "s"] if match else Fraction(0)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time above 0: expected such as 0.5s, 500ms, 2m or all")
    return value


def moment(text: str) -> datetime:
    """Time with a zone from ISO 8601, such as "2024-05-01" or "2024-05-01T12:30:00+02:00"; local without a zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: expected such as 2024-05-01T12:30:00") from None
    return time if time.tzinfo else time.astimezone()


def positive(text: str) -> int:
    """Whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def days(text: str) -> timedelta | str:
    """Length of time from a number of days, or "off"."""
    return "off" if text == "off" else timedelta(days=positive(text))


if __name__ == "__main__":
    sys.exit(main())
