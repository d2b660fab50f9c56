"""The sheet of a search: a page with crops of the persons asked for and of the appearances found, in one HTML file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .answers import rate_text, span_text, verdict_line
from .calibration import LIKELY, UNCERTAIN

if TYPE_CHECKING:
    from ..report.strips import Cell
    from .query import Appearance, QueryPerson, SearchAnswer
    from .store import Store


@dataclass(frozen=True)
class SheetCell:
    """A person on a sheet.

    Attributes:
        kind: "query", "likely", "uncertain" or "unlikely".
        title: what stands above the lines, such as rank and verdict.
        lines: of text, the last one in small letters.
        image: data URI of the picture; "": it cannot be had.
        alt: what the picture shows, in words.
        box: x, y, width, height in pixels of a cell where the picture is one of `report.strips`, None draws none.
    """

    kind: str
    title: str
    lines: Sequence[str]
    image: str
    alt: str
    box: tuple[float, float, float, float] | None = None


def render_sheet(
    headline: str, queries: Sequence[SheetCell], hits: Sequence[SheetCell], unreadable: Sequence[str] = ()
) -> str:
    """HTML of a sheet, which needs no other file and nothing from the network.

    Args:
        headline: The answer in a sentence.
        queries: The persons asked for; none leaves their part out.
        hits: The appearances, the best first.
        unreadable: Why pictures are missing.
    """
    from markupsafe import Markup

    from ..report.page import environment
    from ..report.strips import CELL_HEIGHT, CELL_WIDTH

    return environment().get_template("sheet.html").render(
        style=Markup((Path(__file__).parent.parent / "report" / "page.css").read_text(encoding="utf-8")),
        headline=headline,
        queries=queries,
        hits=hits,
        size=(CELL_WIDTH, CELL_HEIGHT),
        unreadable=unreadable,
        shares={"likely": f"{100 * LIKELY:g} %", "uncertain": f"{100 * UNCERTAIN:g} %"},
    )  # fmt: skip


def write_sheet(answer: SearchAnswer, store: Store, path: str | os.PathLike[str]) -> Path:
    """Writes an answer as one HTML file that needs no other and nothing from the network.

    Args:
        answer: With the persons asked for, see `find_person`.
        store: The store that was searched: its sources give the pictures. The sheet says which cannot be had.
        path: Of the file.

    Returns:
        the path.

    Raises:
        DatasetError: The file cannot be written.
    """
    from ..io import replacing
    from ..report.strips import build_strips

    pictures: dict[str, Any] = {}
    rows = [_query_row(number, query, pictures, store) for number, query in enumerate(answer.queries)]
    hits = [_hit_row(rank, hit, pictures) for rank, hit in enumerate(answer.appearances, 1)]
    # The hits belong to all queries together, so that they are a strip without a query of its own.
    strips = build_strips([*rows, {"frame": "", "box": (0, 0, 1, 1), "results": hits}], _Pictures(pictures, store))
    page = render_sheet(
        verdict_line(answer),
        [_sheet_cell(cell, f"Person asked for, in {cell.entry['name']}") for (cell,) in strips.cells[:-1]],
        [_sheet_cell(c, f"Rank {c.rank}, {c.kind}: {c.entry['lines'][1]}") for c in strips.cells[-1][1:]],
        [reason for name, reason in sorted(strips.unreadable.items()) if name],
    )
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _sheet_cell(cell: Cell, alt: str) -> SheetCell:
    title = f"{cell.rank} {cell.kind}" if cell.rank else cell.kind
    return SheetCell(cell.kind, title, cell.entry["lines"], cell.image, alt, cell.box if cell.image else None)


class _Pictures:
    """Gives the pictures of a sheet by the names that its rows have for them."""

    def __init__(self, pictures: Mapping[str, Any], store: Store) -> None:
        self._pictures, self._store = pictures, store

    def __call__(self, name: str) -> np.ndarray:
        from ..errors import DatasetError
        from .searcher import read_picture
        from .sources import read_frame

        if not name:
            raise DatasetError("no picture")
        picture = self._pictures[name]
        return read_picture(picture) if isinstance(picture, (str, np.ndarray)) else read_frame(self._store, picture)


def _query_row(number: int, query: QueryPerson, pictures: dict[str, Any], store: Store) -> dict[str, Any]:
    name = f"query {number}"
    pictures[name] = query.picture
    if query.chosen == "stored":
        from .store import Filter

        for batch in store.scan(Filter(ids=(query.picture,)), ["source", "camera", "frame", "offset"]):
            pictures[name] = next(iter(batch.to_pylist()), query.picture)
    shown = os.path.basename(query.picture)
    return {"frame": name, "box": query.box, "results": [], "name": shown, "lines": [f"box {query.chosen}", shown]}


def _hit_row(rank: int, hit: Appearance, pictures: dict[str, Any]) -> dict[str, Any]:
    # Frames of a video in their order are read fastest.
    name = f"{hit.source} {hit.camera} {hit.best.frame:012d}"
    pictures[name] = {
        "source": hit.source, "camera": hit.camera, "frame": hit.best.frame, "offset": hit.best.offset
    }  # fmt: skip
    lines = [f"sim. {hit.similarity:.3f}, {rate_text(hit)}", f"camera {hit.camera}", span_text(hit), hit.best.id]
    return {"frame": name, "box": hit.best.box, "verdict": "query" if hit.is_query else hit.verdict, "lines": lines}
