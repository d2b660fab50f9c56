"""Charts of the report: detection, gallery size, top-k and similarities, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

_WIDTH, _HEIGHT = 400, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 26, 42  # margins around the plot


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        label: what it shows, with the unit.
        low, high: its ends; low > 0 where it is logarithmic.
        ticks: values that are marked.
        log: logarithmic.
    """

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    @classmethod
    def around(cls, label: str, values: Iterable[float], ticks: int = 5, percent: bool = False) -> Axis:
        """An axis with round ticks that holds all values; one of percentages does not go beyond 0 and 100.

        Where all values are equal it reaches from 0 to 100 if they are percentages, else 0.5 to both sides.
        """
        values = list(values)
        if min(values) == max(values):
            values = [0, 100] if percent else [values[0] - 0.5, values[0] + 0.5]
        locator = MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10])
        places = np.asarray(locator.tick_values(min(values), max(values))).tolist()
        if percent:
            places = [place for place in places if -1e-9 <= place <= 100 + 1e-9]
        return cls(label, min(places[0], *values), max(places[-1], *values), tuple(places))

    @classmethod
    def at(cls, label: str, values: Iterable[float]) -> Axis:
        """A logarithmic axis with a tick at each of the values (> 0, two different ones or more)."""
        ticks = tuple(sorted(set(values)))
        margin = (ticks[-1] / ticks[0]) ** 0.06
        return cls(label, ticks[0] / margin, ticks[-1] * margin, ticks, log=True)

    def place(self, value: float) -> float:
        """Place of a value between the ends, from 0 to 1."""
        scale = math.log if self.log else float
        return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))


@dataclass(frozen=True)
class Curve:
    """A curve of a chart.

    Attributes:
        name: for the legend.
        x, y: its points.
        style: "first" (a solid line) or "second" (a dashed one).
        markers: mark each point.
        labels: write each y value beside its point.
        filled: fill the area below.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "first"
    markers: bool = False
    labels: bool = False
    filled: bool = False


def stairs(edges: Sequence[float], heights: Sequence[float]) -> tuple[list[float], list[float]]:
    """The outline (x, y) of a histogram with n + 1 edges and n heights, from the ground and back to it."""
    x = [edge for edge in edges for _ in range(2)]
    return x, [0.0, *(height for height in heights for _ in range(2)), 0.0]


def line_chart(curves: Sequence[Curve], x: Axis, y: Axis, description: str) -> Markup:
    """A chart as an SVG element.

    Args:
        curves: one or two.
        x, y: the axes.
        description: says in words what can be seen, for those who cannot see it.
    """
    parts = [*_grid(x, y), *(part for curve in curves for part in _curve(curve, x, y))]
    if len(curves) > 1:
        parts += _legend(curves)
    return Markup(
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(description)}">'
        f"{''.join(parts)}</svg>"
    )


def _spot(x: Axis, y: Axis, a: float, b: float) -> tuple[float, float]:
    across = _LEFT + x.place(a) * (_WIDTH - _LEFT - _RIGHT)
    return round(across, 1), round(_HEIGHT - _BOTTOM - y.place(b) * (_HEIGHT - _TOP - _BOTTOM), 1)


def _grid(x: Axis, y: Axis) -> list[str]:
    left, bottom, right, top = _LEFT, _HEIGHT - _BOTTOM, _WIDTH - _RIGHT, _TOP
    parts = []
    for tick in x.ticks:
        place = _spot(x, y, tick, y.low)[0]
        parts.append(f'<path class="grid" d="M{place} {bottom}V{top}"/>')
        parts.append(f'<text x="{place}" y="{bottom + 15}" text-anchor="middle">{tick:.6g}</text>')
    for tick in y.ticks:
        place = _spot(x, y, x.low, tick)[1]
        parts.append(f'<path class="grid" d="M{left} {place}H{right}"/>')
        parts.append(f'<text x="{left - 6}" y="{place + 4}" text-anchor="end">{tick:.6g}</text>')
    parts.append(f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>')
    middle = (left + right) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x.label)}</text>')
    parts.append(f'<text x="4" y="13">{escape(y.label)}</text>')
    return parts


def _curve(curve: Curve, x: Axis, y: Axis) -> list[str]:
    spots = [_spot(x, y, a, b) for a, b in zip(curve.x, curve.y, strict=True)]
    line = "M" + "L".join(f"{a} {b}" for a, b in spots)
    parts = [f'<path class="area {curve.style}" d="{line}Z"/>'] if curve.filled else []
    parts.append(f'<path class="curve {curve.style}" d="{line}"/>')
    if curve.markers or len(spots) == 1:
        parts += [f'<circle class="{curve.style}" cx="{a}" cy="{b}" r="3"/>' for a, b in spots]
    if curve.labels:
        for (a, b), value in zip(spots, curve.y, strict=True):
            parts.append(f'<text class="value" x="{a}" y="{b - 8}" text-anchor="middle">{value:.1f}</text>')
    return parts


def _legend(curves: Sequence[Curve]) -> list[str]:
    parts, left = [], float(_WIDTH - _RIGHT)
    for curve in reversed(curves):
        left -= 6.4 * len(curve.name)
        parts.append(f'<text x="{left:.1f}" y="13">{escape(curve.name)}</text>')
        parts.append(f'<path class="curve {curve.style}" d="M{left - 30:.1f} 9H{left - 5:.1f}"/>')
        left -= 42
    return parts


def charts(results: Mapping[str, Any], breakdown: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The charts that the data suffice for, each with `id`, `title`, `svg` and `note`.

    Args:
        results: content of results.json.
        breakdown: content of breakdown.json, see `describe_breakdown`.
    """
    drawn = [_detection_chart(results, breakdown), _size_chart(breakdown), _cmc_chart(breakdown)]
    drawn.append(_similarity_chart(results, breakdown))
    return [chart for chart in drawn if chart is not None]


def shown_galleries(breakdown: Mapping[str, Any]) -> list[str]:
    """The main gallery and, where there are metrics, that of other cameras."""
    others = [name for name, row in breakdown["galleries"].items() if not row["all_cameras"]]
    return [breakdown["main_gallery"], *others[:1]]


def gallery_name(name: str) -> str:
    """The name of a gallery, as a reader sees it."""
    return f"gallery of {name}" if name.isdigit() else name.replace("_", " ")


def _detection_chart(results: Mapping[str, Any], breakdown: Mapping[str, Any]) -> dict[str, Any] | None:
    curve = breakdown["detection"]
    if not curve or not curve["recall"]:
        return None
    figures = results["figures"]["detection"]
    end = f"recall {curve['recall'][-1]:.1f} %, precision {curve['precision'][-1]:.1f} %"
    return {
        "id": "precision-recall",
        "title": "Detection: precision and recall",
        "svg": line_chart(
            [Curve("detection", [0, *curve["recall"]], [curve["precision"][0], *curve["precision"]])],
            Axis.around("recall, %", (0, 100), percent=True),
            Axis.around("precision, %", (0, 100), percent=True),
            f"Precision of detection over its recall. The curve ends at {end}.",
        ),
        "note": f"From the highest score down to {curve['score'][-1]:.2f}, where it ends at {end}. The area below it "
        f"is the AP, {figures['AP']:.1f} %.",
    }


def _size_chart(breakdown: Mapping[str, Any]) -> dict[str, Any] | None:
    rows = [row for row in breakdown["galleries"].values() if row["all_cameras"]]
    rows.sort(key=lambda row: row["frames"])
    sizes, values = [row["frames"] for row in rows], [row["mAP"] for row in rows]
    if len(set(sizes)) < 2:
        return None
    words = ", ".join(f"{value:.1f} % in {size:g}" for size, value in zip(sizes, values, strict=True))
    return {
        "id": "gallery-size",
        "title": "mAP against gallery size",
        "svg": line_chart(
            [Curve("mAP", sizes, values, markers=True, labels=True)],
            Axis.at("frames in a query's gallery (logarithmic)", sizes),
            Axis.around("mAP, %", [*values, max(values) + 2], percent=True),
            f"mAP by the number of frames that are searched: {words}.",
        ),
        "note": "Frames: the mean number that is searched for a query. The more frames, the more distractors.",
    }


def _cmc_chart(breakdown: Mapping[str, Any]) -> dict[str, Any]:
    curves = [
        Curve(gallery_name(name), range(1, 21), breakdown["galleries"][name]["cmc"], style, markers=True)
        for name, style in zip(shown_galleries(breakdown), ("first", "second"), strict=False)
    ]
    words = "; ".join(
        f"{curve.name}: " + ", ".join(f"top-{k} {curve.y[k - 1]:.1f} %" for k in (1, 5, 10, 20)) for curve in curves
    )
    return {
        "id": "top-k",
        "title": "Top-1 to top-20",
        "svg": line_chart(
            curves,
            Axis("k", 0.4, 20.4, (1, 5, 10, 15, 20)),
            Axis.around("top-k, %", [value for curve in curves for value in curve.y], percent=True),
            f"Share of the queries with a correct detection among the first k. {words}.",
        ),
        "note": "Share of the queries with a correct detection among the first k.",
    }


def _similarity_chart(results: Mapping[str, Any], breakdown: Mapping[str, Any]) -> dict[str, Any] | None:
    counted = breakdown["similarity"]
    groups = {"matches": np.array(counted["matches"]), "others": np.array(counted["others"])}
    used = np.flatnonzero(groups["matches"] + groups["others"])
    if not all(group.sum() for group in groups.values()):
        return None
    shown = slice(int(used[0]), int(used[-1]) + 1)
    edges = np.array(counted["edges"])[shown.start : shown.stop + 1]
    share = {name: 100 * group[shown] / group.sum() for name, group in groups.items()}
    middle = {name: float(np.average((edges[1:] + edges[:-1]) / 2, weights=value)) for name, value in share.items()}
    curves = [
        Curve(name, *stairs(edges.tolist(), share[name].tolist()), style, filled=True)
        for name, style in (("matches", "first"), ("others", "second"))
    ]
    means = f"Means: matches {middle['matches']:.2f}, others {middle['others']:.2f}."
    replaced = {results["protocol"][key] for key in ("context_matching", "reranking")} != {"none"}
    return {
        "id": "similarities",
        "title": "Similarity of matches and of others",
        "svg": line_chart(
            curves,
            Axis.around(f"similarity ({results['protocol']['similarity']})", (edges[0], edges[-1]), ticks=6),
            Axis.around("% of each", [0, *share["matches"], *share["others"]]),
            f"Distribution of the similarity to the query of correct detections (matches) and of all others. {means}",
        ),
        "note": f"Of {counted['queries']} queries: {groups['matches'].sum()} matches that are found, and all other "
        f"detections of their galleries. {means}" + (" Before re-ranking or context matching." if replaced else ""),
    }
