"""Answers for people and programs: a table, JSON lines, and what a store holds."""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .query import Appearance, SearchAnswer
    from .store import Store


def describe(answer: SearchAnswer) -> str:
    """An answer as lines of text: the queries, the verdict, and a line for each appearance."""
    lines = [
        f"query: {query.picture}, box {' '.join(f'{v:.0f}' for v in query.box)} ({query.chosen})"
        for query in answer.queries
    ]
    lines.append(verdict_line(answer))
    for rank, appearance in enumerate(answer.appearances, 1):
        verdict = "query" if appearance.is_query else appearance.verdict
        lines.append(
            f"{rank:>3}  {verdict:<9}  {appearance.similarity:6.3f}  {rate_text(appearance):>18}  "
            f"{appearance.camera}  {span_text(appearance)}  {appearance.best.id}"
        )
    return "\n".join(lines)


def verdict_line(answer: SearchAnswer) -> str:
    """What the search found, in a sentence."""
    likely = len(answer.likely)
    if likely:
        return f"Found: {likely} likely appearance{'s' if likely > 1 else ''} among about {answer.searched} searched."
    if not answer.appearances:
        return "Nothing to search: no detection meets the filter."
    if not answer.calibration.known:
        return (
            "Cannot tell whether the person is there: the store holds too few frames with several persons to know how "
            "alike different people look. The most similar appearances:"
        )
    return f"Not there, as far as the model can tell: none of about {answer.searched} appearances is likely."


def rate_text(appearance: Appearance) -> str:
    """Rate of false matches in words."""
    if appearance.is_query:
        return "the query's own"
    rate = appearance.false_match_rate
    if math.isnan(rate):
        return "rate unknown"
    return f"{100 * rate:.2g} % false" if rate >= 0.0001 else "below 0.01 % false"


def span_text(appearance: Appearance) -> str:
    """When an appearance begins and ends: times where they are known, else places in the source."""
    name = os.path.basename(appearance.source.rstrip("/"))
    if appearance.start is not None and appearance.end is not None:
        start, end = appearance.start.astimezone(), appearance.end.astimezone()
        text = start.isoformat(" ", "seconds")
        return text if start == end else f"{text} to {end.time().isoformat('seconds')}"
    if appearance.start_offset == appearance.end_offset == 0:
        return name
    return f"{name} {_clock(appearance.start_offset)} to {_clock(appearance.end_offset)}"


def _clock(offset: float) -> str:
    return str(timedelta(seconds=round(offset)))


def to_row(appearance: Appearance, rank: int) -> dict[str, Any]:
    """An appearance fit for JSON; an unknown rate of false matches is null."""
    row = {"rank": rank, **asdict(appearance)}
    row["false_match_rate"] = None if math.isnan(appearance.false_match_rate) else appearance.false_match_rate
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}


def write_jsonl(answer: SearchAnswer, path: str) -> None:
    """Writes an answer as JSON, a line for each appearance; "-" writes to the screen.

    Raises:
        DatasetError: The file cannot be written.
    """
    lines = "".join(json.dumps(to_row(a, rank)) + "\n" for rank, a in enumerate(answer.appearances, 1))
    if path == "-":
        sys.stdout.write(lines)
        return
    from ..io import replacing

    with replacing(Path(path)) as temporary:
        temporary.write_text(lines, encoding="utf-8")


def describe_store(store: Store, *, as_json: bool = False) -> str:
    """What a store holds: its model, detections, cameras and sources, and what could not be read."""
    from .maintenance import describe as summarize

    summary = summarize(store)
    if as_json:
        return json.dumps(asdict(summary), default=str, indent=1)
    kinds = Counter(state.kind for state in summary.sources)
    unfinished = sum(not state.finished and not state.error and state.kind != "stream" for state in summary.sources)
    lines = [
        f"{summary.uri}: {summary.detections:,} detections in {summary.tracklets:,} appearances"
        + ("" if summary.bytes is None else f", {summary.bytes / 1e6:,.1f} MB"),
        f"model: {summary.info.model}, dimension {summary.info.dimension}, weights {summary.info.weights_digest[:12]}",
        "sources: " + (", ".join(f"{count} {kind}s" for kind, count in sorted(kinds.items())) or "none")
        + (f"; {unfinished} not yet indexed to the end" if unfinished else ""),
        *(f"camera {camera}: {count:,} detections" for camera, count in sorted(summary.cameras.items())),
    ]  # fmt: skip
    if summary.first is not None and summary.last is not None:
        first, last = (time.astimezone().isoformat(" ", "seconds") for time in (summary.first, summary.last))
        lines.append(f"time: {first} to {last}; {summary.undated:,} detections without")
    kept = summary.retention_days
    lines.append("kept: " + ("without limit" if kept is None else f"{kept} days"))
    lines += [f"not read to its end: {state.error}" for state in summary.sources if state.error]
    return "\n".join(lines)
