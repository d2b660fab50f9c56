"""Commands of `person-search`, run with parsed arguments."""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ..errors import PersonSearchError
from .store import Filter, Store, open_store

if TYPE_CHECKING:
    from .query import QueryPerson
    from .searcher import PersonSearcher

logger = logging.getLogger(__name__)

_EXTRA = ("av", "lancedb", "pyarrow", "pymilvus", "trackers", "supervision", "fastapi", "uvicorn")
_DETECTION_ID = re.compile(r"[0-9a-f]{16}:\d{10,}:\d{4,}")


def run(args: argparse.Namespace) -> int:
    """Runs the command of parsed arguments and returns its exit status."""
    _log_to_screen()
    try:
        return _COMMANDS[args.command](args)
    except PersonSearchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        print(f"error: {error.name} is missing: pip install 'person_search_ssl[search]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _index(args: argparse.Namespace) -> int:
    from .index import IndexOptions, index
    from .sources import find_sources

    sources = find_sources(args.sources, camera=args.camera, start=args.start)
    searcher = _searcher(args)
    store = open_store(args.store, info=searcher.info, create=True)
    _apply_retention(store)
    options = IndexOptions(
        every=args.every,
        batch_size=args.batch_size or (1 if searcher.device == "cpu" else 4),
        readers=args.readers,
        keep_frames=None if args.keep_frames is None else Path(args.keep_frames),
        seconds=None if args.duration is None else float(args.duration),
    )
    with _stopped_by_signals() as stop:
        report = index(searcher, store, sources, options, stop=stop)
        interrupted = stop.is_set()
    rate = report.frames / max(report.seconds, 1e-9)
    print(
        f"{report.frames} frames of {report.sources} sources in {timedelta(seconds=round(report.seconds))} "
        f"({rate:.3g} frames/s), {report.detections} persons; {report.already} sources were indexed already"
    )
    for error in report.left_out.values():
        print(f"left out: {error}")
    print(f"{store.uri}: {store.count()} detections")
    store.close()
    if interrupted:
        print("interrupted; run the same command to continue", file=sys.stderr)
        return 130
    return 0


def _search(args: argparse.Namespace) -> int:
    from .answers import describe, write_jsonl
    from .query import find_person, stored_person

    store = open_store(args.store)
    queries = _queries(args, store)
    wrong = [stored_person(store, identity).embedding for identity in args.wrong]
    answer = find_person(
        store,
        np.stack([query.embedding for query in queries]),
        where=Filter(cameras=tuple(args.camera), since=args.since, until=args.until),
        top=args.top,
        rerank=args.rerank,
        negatives=np.stack(wrong) if wrong else None,
        queries=queries,
    )
    if args.jsonl != "-":
        print(describe(answer))
    if args.jsonl:
        write_jsonl(answer, args.jsonl)
    if args.html:
        from .sheet import write_sheet

        print(f"sheet: {write_sheet(answer, store, args.html)}", file=sys.stderr)
    store.close()
    return 0


def _queries(args: argparse.Namespace, store: Store) -> list[QueryPerson]:
    """Persons to search for: of pictures, or detections of the store by id."""
    from .query import stored_person

    boxes = [*args.box]
    queries: list[QueryPerson] = []
    searcher: PersonSearcher | None = None
    for query in args.queries:
        if _DETECTION_ID.fullmatch(query):
            queries.append(stored_person(store, query))
            continue
        if searcher is None:
            if not args.weights:
                raise PersonSearchError("--weights is missing: a picture is searched with the model of the store")
            searcher = _searcher(args)
            open_store(args.store, info=searcher.info).close()  # rejects another model than the store's
        queries.append(_ask_person(searcher, query, boxes.pop(0) if boxes else None))
    if boxes:
        raise PersonSearchError(f"{len(args.box)} boxes for {len(args.queries)} pictures: give at most one per picture")
    return queries


def _ask_person(searcher: PersonSearcher, picture: str, box: list[float] | None) -> QueryPerson:
    """Person of a picture; in a terminal, the user is asked which of several."""
    from .query import QueryError, query_person

    try:
        person = query_person(searcher, picture, box)
    except QueryError as error:
        if not len(error.detections) or not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        print(f"{error}\nWhich one? ", end="", file=sys.stderr, flush=True)
        choice = sys.stdin.readline().strip()
        if not choice.isdigit() or not 1 <= int(choice) <= len(error.detections):
            raise PersonSearchError(f"{choice!r} is none of 1 to {len(error.detections)}") from error
        return query_person(searcher, picture, error.detections.boxes[int(choice) - 1].tolist())
    if person.chosen == "whole":
        print(f"{picture}: nobody is detected; using the whole picture", file=sys.stderr)
    return person


def _serve(args: argparse.Namespace) -> int:
    from .serve import run_serve

    run_serve(args)
    return 0


def _adapt(args: argparse.Namespace) -> int:
    from .adapt import adapt_footage

    return adapt_footage(args)


def _export(args: argparse.Namespace) -> int:
    from .maintenance import export

    store = open_store(args.store)
    where = Filter(cameras=tuple(args.camera), since=args.since, until=args.until)
    export(store, args.file, where)
    print(f"{args.file}: {store.count(where)} detections")
    store.close()
    return 0


def _forget(args: argparse.Namespace) -> int:
    from .maintenance import apply_retention, forget, forget_person, set_retention

    store = open_store(args.store)
    if args.keep_days is not None:
        kept = None if args.keep_days == "off" else args.keep_days.days
        set_retention(store, kept)
        print(f"{store.uri}: {'nothing is deleted by age' if kept is None else f'detections are kept {kept} days'}")
        print(f"{apply_retention(store)} detections deleted")
        return 0
    where = Filter(cameras=tuple(args.camera), until=args.before, tracklets=tuple(args.person))
    if where.empty:
        raise PersonSearchError("nothing to forget is given: use --before, --camera, --person or --keep-days")
    if not args.yes and not _confirmed(f"Delete {store.count(where)} detections of {store.uri} permanently?"):
        print("nothing is deleted")
        return 0
    only_persons = args.person and not args.camera and args.before is None
    deleted = forget_person(store, tuple(args.person)) if only_persons else forget(store, where)
    print(f"{deleted} detections deleted")
    store.close()
    return 0


def _info(args: argparse.Namespace) -> int:
    from .answers import describe_store

    store = open_store(args.store)
    print(describe_store(store, as_json=args.json))
    store.close()
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "index": _index,
    "search": _search,
    "serve": _serve,
    "adapt": _adapt,
    "export": _export,
    "forget": _forget,
    "info": _info,
}


# ---------------------------------------------------------------------- shared by the commands


def _searcher(args: argparse.Namespace) -> PersonSearcher:
    from .searcher import PersonSearcher

    return PersonSearcher(args.config_file, args.weights, device=args.device)


def _apply_retention(store: Store) -> None:
    from .maintenance import apply_retention

    deleted = apply_retention(store)
    if deleted:
        logger.info("Deleted %d detections older than the store's retention", deleted)


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise PersonSearchError(f"{question} There is no terminal to ask: add --yes")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """Event that is set by the first Ctrl-C or SIGTERM; the second one ends the program."""
    stop = threading.Event()
    before: dict[signal.Signals, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: Any) -> None:
        stop.set()
        restore()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()


class _Screen(logging.Handler):
    """Handler that writes lines above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + record.getMessage(), file=sys.stderr)


def _log_to_screen() -> None:
    own = logging.getLogger("person_search")
    own.setLevel(logging.INFO)
    own.propagate = False
    own.handlers = [_Screen()]
    for name in ("fvcore", "detectron2", "torch.fx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)  # caused by Detectron2
