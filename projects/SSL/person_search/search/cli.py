"""Command line: `person-search index`, `search`, `serve`, `adapt`, `export`, `forget` and `info`.

This module imports the standard library only, so that `--help` is fast; commands import what they need.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from fractions import Fraction

_STORE = "folder or s3://bucket/prefix (LanceDB), or http://host:port/collection (Milvus)"
OFF = "off"
"""Value that disables an option whose None means "all"."""
_TIME = "times without a zone are local times of this machine"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0, 2 for an error explained by a message, 130 if interrupted."""
    args = parse_arguments(argv)
    from . import commands  # reports a missing extra

    return commands.run(args)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parsed arguments of a command, which is named by `command`."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    # Pictures may follow the box of the previous one, but argparse takes positional arguments in one go only.
    if args.command == "search" and rest and not any(word.startswith("-") for word in rest):
        args.queries += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def build_parser() -> argparse.ArgumentParser:
    """Parser of all commands."""
    parser = argparse.ArgumentParser(prog="person-search", description="Finds a person in your own footage.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_index(commands.add_parser("index", help="detect the persons of photos, videos and live streams"))
    _add_search(commands.add_parser("search", help="find a person by a picture"))
    _add_serve(commands.add_parser("serve", help="open the page to search with"))
    _add_adapt(commands.add_parser("adapt", help="train on footage without annotations, then index it"))
    _add_export(commands.add_parser("export", help="write detections as Parquet, JSON lines or MOT text"))
    _add_forget(commands.add_parser("forget", help="delete detections for good"))
    _add_info(commands.add_parser("info", help="say what a store holds"))
    return parser


# ---------------------------------------------------------------------- arguments of the commands


def _add_model(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument("--weights", required=required, help="checkpoint of a training")
    parser.add_argument("--config-file", help="config of the weights, if the checkpoint has none")
    parser.add_argument("--device", help="such as cuda, cuda:1 or cpu (default: a GPU if there is one)")


def _add_filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--camera", action="append", default=[], help="only this camera; may be repeated")
    parser.add_argument("--since", type=moment, metavar="TIME", help=f"from this time on; {_TIME}")
    parser.add_argument("--until", type=moment, metavar="TIME", help="before this time")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="photo, video, folder of them, or URL of a stream")
    parser.add_argument(
        "--every", type=seconds, default=Fraction(1, 2), metavar="0.5s",
        help="time between indexed frames, or 'all' (default: 0.5s)",
    )  # fmt: skip
    parser.add_argument(
        "--camera", metavar="NAME",
        help="name of the camera, with {stem} for the name of the file and {folder} for that of its folder (default: "
        "{stem} for videos, {folder} for photos)",
    )  # fmt: skip
    parser.add_argument("--start", type=moment, metavar="TIME", help=f"time of the videos' first frame; {_TIME}")


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Indexes footage. It can be killed at any moment: the same command continues where it stopped, and skips "
        "sources that are indexed and unchanged."
    )
    _add_sampling(parser)
    _add_model(parser, required=True)
    parser.add_argument("--store", required=True, metavar="URI", help=_STORE)
    parser.add_argument("--batch-size", type=positive, help="pictures per pass of the network (default: CPU 1, GPU 4)")
    parser.add_argument("--readers", type=positive, default=2, help="threads that decode files (default: 2)")
    parser.add_argument("--keep-frames", metavar="FOLDER", help="keep the pictures of live streams that show a person")
    parser.add_argument("--for", dest="duration", type=seconds, metavar="60s", help="end live streams after this time")


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.description = "Finds a person. Several pictures of one person make one query."
    parser.add_argument("queries", nargs="+", metavar="QUERY", help="picture of the person, or id of a detection")
    parser.add_argument(
        "--box", nargs=4, type=float, action="append", default=[], metavar=("X0", "Y0", "X1", "Y1"),
        help="box of the person in pixels: the first box belongs to the first picture, and so on; without a box the "
        "only detected person is used",
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
    parser.add_argument("--html", metavar="FILE", help="also write a sheet of crops")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    from .serve import add_serve_arguments

    add_serve_arguments(parser)


def _add_adapt(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Trains a model on footage without annotations: a detector provides boxes, training learns to tell persons "
        "apart, and the footage is indexed with the result."
    )
    _add_sampling(parser)
    parser.add_argument(
        "--out",
        required=True,
        metavar="FOLDER",
        help="folder for frames, boxes, model and store; an interrupted run continues there",
    )
    parser.add_argument(
        "--boxes", default="coco", metavar="WHENCE",
        help="'coco' (Detectron2's Faster R-CNN), a checkpoint of this project (.pth), or a file of boxes: COCO "
        "results (.json) or MOT detections (.txt); default: coco",
    )  # fmt: skip
    parser.add_argument("--detector-weights", metavar="FILE", help="weights of Detectron2's detector, if offline")
    parser.add_argument("--min-score", type=float, default=0.5, help="minimum score of a box (default: 0.5)")
    parser.add_argument(
        "--tracklets", type=seconds_or_off, default=OFF, metavar="0.1s",
        help="assume that boxes joined by a tracker show one person (default: off); time between the frames of the "
        "tracker, or 'all', which takes time with a detector and none with a file of boxes",
    )  # fmt: skip
    parser.add_argument("--config-file", help="config of the training (default: that of --weights, or footage.yaml)")
    parser.add_argument("--weights", help="initial checkpoint of the training")
    parser.add_argument("--epochs", type=positive, help="length of the training (default: the config's)")
    parser.add_argument("--device", help="such as cuda or cpu (default: a GPU if there is one)")
    parser.add_argument(
        "--set",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="a config key of the training",
    )


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="file ending in .parquet, .jsonl or .txt (MOT)")
    parser.add_argument("--store", required=True, metavar="URI", help=_STORE)
    _add_filter(parser)


def _add_forget(parser: argparse.ArgumentParser) -> None:
    parser.description = "Deletes detections and their kept pictures permanently; footage files are not deleted."
    parser.add_argument("--store", required=True, metavar="URI", help=_STORE)
    parser.add_argument("--before", type=moment, metavar="TIME", help=f"everything before this time; {_TIME}")
    parser.add_argument("--camera", action="append", default=[], help="everything of this camera; may be repeated")
    parser.add_argument(
        "--person", action="append", default=[], metavar="TRACKLET",
        help="an appearance, by its tracklet in a search; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--keep-days", type=days, metavar="DAYS",
        help="from now on delete older data, whenever footage is indexed or served; 'off' to stop that",
    )  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", required=True, metavar="URI", help=_STORE)
    parser.add_argument("--json", action="store_true", help="as JSON")


# ---------------------------------------------------------------------- kinds of values


def seconds(text: str) -> Fraction | None:
    """Exact seconds of "0.5s", "500ms", "2m" or "2"; None for "all"."""
    if text == "all":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?", text)
    units = {"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600)}
    value = Fraction(match[1]) * units[match[2] or "s"] if match else Fraction(0)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0, such as 0.5s, 500ms or 2m, or all")
    return value


def seconds_or_off(text: str) -> Fraction | str | None:
    """`seconds` of a text, or "off"."""
    return OFF if text == OFF else seconds(text)


def moment(text: str) -> datetime:
    """Time with a zone from ISO 8601, such as "2024-05-01" or "2024-05-01T12:30:00+02:00"; local without a zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2024-05-01T12:30:00") from None
    return time if time.tzinfo else time.astimezone()


def positive(text: str) -> int:
    """Integer of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of 1 or more")
    return int(text)


def days(text: str) -> timedelta | str:
    """Duration from a number of days, or "off"."""
    return "off" if text == "off" else timedelta(days=positive(text))


if __name__ == "__main__":
    sys.exit(main())
