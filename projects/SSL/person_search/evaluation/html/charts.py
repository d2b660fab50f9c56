"""The charts of the report: detection, gallery size, top-k and similarities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .svg import Axis, Curve, line_chart, stairs


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
    """The main gallery and, where there are figures, that of other cameras."""
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
    axis = {"values": (0, 100), "percent": True}
    end = f"recall {curve['recall'][-1]:.1f} %, precision {curve['precision'][-1]:.1f} %"
    return {
        "id": "precision-recall",
        "title": "Detection: precision and recall",
        "svg": line_chart(
            [Curve("detection", [0, *curve["recall"]], [curve["precision"][0], *curve["precision"]])],
            Axis.around("recall, %", **axis),
            Axis.around("precision, %", **axis),
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
        "note": "Frames: the mean number that is searched for a query. The more frames, the more strangers.",
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
