"""Tables of measured figures, as Markdown and CSV, beside those of the papers."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.controls import HISTOGRAM, TITLES
from ..io import replacing
from .rows import Published

FIGURES = {
    "search/mAP": "mAP",
    "search/top1": "top-1",
    "detection/AP": "detection AP",
    "detection/recall": "detection recall",
}
_MAIN = "search/mAP"
_HISTOGRAM = f"control_{HISTOGRAM}/mAP"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of one figure over the seeds; NaN where there are too few."""

    mean: float
    deviation: float
    count: int

    def __str__(self) -> str:
        if not self.count:
            return "-"
        return f"{self.mean:.1f}" + ("" if math.isnan(self.deviation) else f" ± {self.deviation:.1f}")


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of some values."""
    mean = statistics.fmean(values) if values else math.nan
    return Spread(mean, statistics.stdev(values) if len(values) > 1 else math.nan, len(values))


@dataclass(frozen=True)
class TableRow:
    """What was measured for a row.

    Attributes:
        name, title: see `Row`.
        by_seed: seed -> figure ("search/mAP", ...) -> percent.
        changes: keys that differ from the dataset's config, with their values.
        published: the papers' figures, by what they were measured on.
    """

    name: str
    title: str
    by_seed: Mapping[int, Mapping[str, float]]
    changes: Mapping[str, Any]
    published: Mapping[str, Published]

    def spread(self, figure: str) -> Spread:
        """Spread of a figure over the seeds that have it."""
        return spread([figures[figure] for figures in self.by_seed.values() if figure in figures])

    @property
    def below_histogram(self) -> bool:
        """Whether a color histogram, on the detections of this row, finds people better than this row."""
        return self.spread(_MAIN).mean < self.spread(_HISTOGRAM).mean  # False where either is missing (NaN)

    def gain(self, other: TableRow) -> Spread:
        """mAP minus that of another row, seed by seed, so that what a seed does to both falls out."""
        common = [seed for seed in self.by_seed if seed in other.by_seed]
        return spread([self.by_seed[seed][_MAIN] - other.by_seed[seed][_MAIN] for seed in common])


def flat_metrics(metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """ "search" -> "mAP" -> value, as results.json has it, to "search/mAP" -> value; missing values are left out."""
    return {
        f"{group}/{name}": float(value)
        for group, values in metrics.items()
        for name, value in values.items()
        if value is not None
    }


def markdown_table(rows: Sequence[TableRow], heading: str, about: Sequence[str], seeds: int) -> str:
    """The table as Markdown.

    Args:
        rows: the first is the one that gains are against.
        heading: title of the page.
        about: lines that say how the figures were made.
        seeds: how many each row is to be trained with.
    """
    papers = list(dict.fromkeys(name for row in rows for name in row.published))
    header = ["", *FIGURES.values(), f"mAP gained over {rows[0].title!r}", "seeds"]
    controls = [name for name in TITLES if any(row.spread(f"control_{name}/mAP").count for row in rows)]
    header += [f"same detections by {TITLES[name]}, mAP / top-1" for name in controls]
    header += [f"paper's own: {name}, mAP / top-1" for name in papers]
    lines = [f"# {heading}", "", *about, "", _line(header), "|---|" + "---:|" * (len(header) - 1)]
    for row in rows:
        title = f"{row.title} (**below the color histogram**)" if row.below_histogram else row.title
        cells = [title, *(str(row.spread(figure)) for figure in FIGURES)]
        cells += ["" if row is rows[0] else _signed(row.gain(rows[0])), f"{len(row.by_seed)} of {seeds}"]
        cells += [f"{row.spread(f'control_{name}/mAP')} / {row.spread(f'control_{name}/top1')}" for name in controls]
        cells += [f"{row.published[p].mAP} / {row.published[p].top1}" if p in row.published else "-" for p in papers]
        lines.append(_line(cells))
    lines += ["", "Percent; mean ± sample standard deviation over the seeds. Gains are taken seed by seed."]
    if controls:
        lines.append("Controls search the same boxes without re-id training.")
    if papers:
        lines.append('Columns with "paper\'s own" quote publications; they are no measurements of this project.')
    lines += ["", "What each row sets on top of the dataset's config:", ""]
    for row in rows:
        changes = ", ".join(f"`{key} {value}`" for key, value in row.changes.items()) or "nothing"
        lines.append(f"- {row.title}: {changes}")
    return "\n".join(lines) + "\n"


def csv_table(rows: Sequence[TableRow]) -> str:
    """The table as CSV, one line a row: mean, deviation and the value of each seed of every figure, and the papers'."""
    papers = list(dict.fromkeys(name for row in rows for name in row.published))
    header = ["row", "title", "seeds"]
    header += [f"{figure} {part}" for figure in FIGURES for part in ("mean", "deviation", "of each seed")]
    header += ["mAP gain mean", "mAP gain deviation"]
    controls = [f"control_{name}/{figure}" for name in TITLES for figure in ("mAP", "top1")]
    controls = [name for name in controls if any(row.spread(name).count for row in rows)]
    header += [f"{name} mean" for name in controls]
    header += [f"paper: {name}, {figure}" for name in papers for figure in ("mAP", "top-1")]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        cells: list[Any] = [row.name, row.title, " ".join(str(seed) for seed in sorted(row.by_seed))]
        for figure in FIGURES:
            values = [row.by_seed[seed].get(figure) for seed in sorted(row.by_seed)]
            spread_ = row.spread(figure)
            cells += [_number(spread_.mean), _number(spread_.deviation), " ".join(_number(v) for v in values)]
        gain = row.gain(rows[0])
        cells += [_number(gain.mean), _number(gain.deviation)]
        cells += [_number(row.spread(name).mean) for name in controls]
        for name in papers:
            cells += row.published.get(name, ("", ""))
        writer.writerow(cells)
    return file.getvalue()


def write_tables(folder: Path, name: str, markdown: str, table: str) -> list[Path]:
    """Writes <name>.md and <name>.csv, each atomically, and returns their paths.

    Raises:
        DatasetError: one cannot be written.
    """
    files = {folder / f"{name}.md": markdown, folder / f"{name}.csv": table}
    for path, text in files.items():
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(files)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _signed(gain: Spread) -> str:
    return f"{'+' if gain.mean >= 0 else ''}{gain}" if gain.count else "-"


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"
