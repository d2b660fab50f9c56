"""Charts of the report: detection, gallery size, top-k and similarities, drawn by Matplotlib as inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 400, 260
# Color in Matplotlib's file -> the page's variable, which is another color on a dark page.
_VARIABLES = {"#010101": "ink", "#020202": "soft", "#030303": "paper", "#040404": "rule", "#050505": "blue",
              "#060606": "orange"}  # fmt: skip
_INK, _SOFT, _PAPER, _RULE, _BLUE, _ORANGE = _VARIABLES
# Color, dashes and face of the markers of the first and of the second curve.
_STYLES = ((_BLUE, "-", _BLUE), (_ORANGE, (0, (3, 1.5)), _PAPER))
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.size": 12,
    "axes.titlesize": 12,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.labelcolor", "ytick.labelcolor"), _SOFT),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size", "axes.xmargin", "axes.ymargin"), 0),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon", "axes.formatter.useoffset"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    "axes.autolimit_mode": "round_numbers",
    "grid.color": _RULE,
    "xtick.major.pad": 6,
    "ytick.major.pad": 6,
}


@dataclass(frozen=True)
class Axis:
    """An axis, with round ticks around the values of the curves.

    Attributes:
        label: what it shows, with the unit.
        limits: its ends, whatever the values are.
        percent: it does not go beyond 0 and 100.
        ticks: values that are marked in place of round ones.
        log: logarithmic.
    """

    label: str
    limits: tuple[float, float] | None = None
    percent: bool = False
    ticks: tuple[float, ...] = ()
    log: bool = False


@dataclass(frozen=True)
class Curve:
    """A curve of a chart.

    Attributes:
        name: for the legend.
        x, y: its points.
        markers: mark each point.
        labels: write each y value beside its point.
        filled: fill the area below.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    markers: bool = False
    labels: bool = False
    filled: bool = False


def stairs(edges: Sequence[float], heights: Sequence[float]) -> tuple[list[float], list[float]]:
    """The outline (x, y) of a histogram with n + 1 edges and n heights, from the ground and back to it."""
    x = [edge for edge in edges for _ in range(2)]
    return x, [0.0, *(height for height in heights for _ in range(2)), 0.0]


def line_chart(curves: Sequence[Curve], x: Axis, y: Axis, description: str) -> Markup:
    """A chart as an SVG element whose colors and font are the page's.

    Args:
        curves: one or two.
        x, y: the axes.
        description: says in words what can be seen, for those who cannot see it.
    """
    # The salt makes the names of markers and clip paths, which one page has once, and the same in every run.
    with rc_context(_STYLE | {"svg.hashsalt": description}):
        figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), layout="constrained")
        axes = figure.add_subplot()
        for curve, style in zip(curves, _STYLES, strict=False):
            _draw(axes, curve, *style)
        _scale(axes, "x", x, [value for curve in curves for value in curve.x])
        _scale(axes, "y", y, [value for curve in curves for value in curve.y])
        axes.set_xlabel(x.label)
        axes.set_title(y.label, loc="left")
        if len(curves) > 1:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0, columnspacing=1.2)
        return _inline(figure, description)


def _draw(axes: Axes, curve: Curve, color: str, dashes: Any, face: str) -> None:
    marker = "o" if curve.markers or len(curve.x) == 1 else ""
    axes.plot(curve.x, curve.y, color=color, linestyle=dashes, linewidth=2, marker=marker, markersize=6,
              markerfacecolor=face, clip_on=not marker, label=curve.name)  # fmt: skip
    if curve.filled:
        axes.fill(curve.x, curve.y, color=color, alpha=0.18, linewidth=0)
    if curve.labels:
        axes.set_ymargin(0.1)
        for spot in zip(curve.x, curve.y, strict=True):
            axes.annotate(f"{spot[1]:.1f}", spot, (0, 8), textcoords="offset points", ha="center", color=_INK)


def _scale(axes: Axes, side: Literal["x", "y"], axis: Axis, values: Sequence[float]) -> None:
    """Sets the ends and the ticks of one axis ("x" or "y") that holds the values."""
    if axis.log:
        axes.set(**{f"{side}scale": "log"})
    if axis.ticks:
        axes.set(**{f"{side}ticks": axis.ticks, f"{side}ticklabels": [f"{tick:.6g}" for tick in axis.ticks]})
        axes.minorticks_off()
    else:
        axes.locator_params(side, nbins=5, steps=[1, 2, 2.5, 5, 10])
    limits = axis.limits
    if limits is None and min(values) == max(values):
        limits = (0, 100) if axis.percent else (values[0] - 0.5, values[0] + 0.5)
    low, high = limits or (axes.get_xlim() if side == "x" else axes.get_ylim())
    axes.set(**{f"{side}lim": (max(low, 0), min(high, 100)) if axis.percent else (low, high)})


def _inline(figure: Figure, description: str) -> Markup:
    """A figure as an element of a page: without fonts, colors, styles and names of its own."""
    for artist in figure.findobj():
        artist.set_clip_on(False)
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = re.sub(r"<!--.*?-->|<style.*?</style>|<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    drawn = drawn[drawn.index(">", drawn.index("<svg")) + 1 :]
    used = set(re.findall(r"#(\w+)", drawn))
    drawn = re.sub(r' id="([\w.]+)"', lambda name: name[0] if name[1] in used else "", drawn)
    drawn = re.sub(r"font[\w-]*: [^;\"]*; ?", "", drawn)
    for color, variable in _VARIABLES.items():
        drawn = drawn.replace(color, f"var(--{variable})")
    start = f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(description)}">'
    return Markup(start + re.sub(r"\s*\n\s*", " ", drawn))


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
            Axis("recall, %", (0, 100)),
            Axis("precision, %", (0, 100)),
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
    margin = (sizes[-1] / sizes[0]) ** 0.06
    return {
        "id": "gallery-size",
        "title": "mAP against gallery size",
        "svg": line_chart(
            [Curve("mAP", sizes, values, markers=True, labels=True)],
            Axis(
                "frames in a query's gallery (logarithmic)",
                (sizes[0] / margin, sizes[-1] * margin),
                ticks=tuple(sorted(set(sizes))),
                log=True,
            ),
            Axis("mAP, %", percent=True),
            f"mAP by the number of frames that are searched: {words}.",
        ),
        "note": "Frames: the mean number that is searched for a query. The more frames, the more distractors.",
    }


def _cmc_chart(breakdown: Mapping[str, Any]) -> dict[str, Any]:
    curves = [
        Curve(gallery_name(name), range(1, 21), breakdown["galleries"][name]["cmc"], markers=True)
        for name in shown_galleries(breakdown)
    ]
    words = "; ".join(
        f"{curve.name}: " + ", ".join(f"top-{k} {curve.y[k - 1]:.1f} %" for k in (1, 5, 10, 20)) for curve in curves
    )
    return {
        "id": "top-k",
        "title": "Top-1 to top-20",
        "svg": line_chart(
            curves,
            Axis("k", (0.4, 20.4), ticks=(1, 5, 10, 15, 20)),
            Axis("top-k, %", percent=True),
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
    curves = [Curve(name, *stairs(edges.tolist(), share[name].tolist()), filled=True) for name in ("matches", "others")]
    means = f"Means: matches {middle['matches']:.2f}, others {middle['others']:.2f}."
    replaced = {results["protocol"][key] for key in ("context_matching", "reranking")} != {"none"}
    return {
        "id": "similarities",
        "title": "Similarity of matches and of others",
        "svg": line_chart(
            curves,
            Axis(f"similarity ({results['protocol']['similarity']})"),
            Axis("% of each"),
            f"Distribution of the similarity to the query of correct detections (matches) and of all others. {means}",
        ),
        "note": f"Of {counted['queries']} queries: {groups['matches'].sum()} matches that are found, and all other "
        f"detections of their galleries. {means}" + (" Before re-ranking or context matching." if replaced else ""),
    }
