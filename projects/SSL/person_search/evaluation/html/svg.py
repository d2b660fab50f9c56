"""Line charts as inline SVG. Colours and line styles are classes of page.css, so that they follow the theme."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
        places = MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]).tick_values(min(values), max(values)).tolist()
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
        """Where a value lies between the ends, from 0 to 1."""
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
