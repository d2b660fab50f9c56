"""What the figures have in common: colours, line styles, and writing them as PNG and SVG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evaluation.storage import replacing

# Of Okabe and Ito's palette: they differ for colour-blind eyes too.
BLUE, VERMILION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#B8529B", "#666666"
# Colour, dashes and marker of each run, so that grey prints can be read.
STYLES = (
    (BLUE, "-", "o"),
    (VERMILION, "--", "s"),
    (GREEN, "-.", "^"),
    (PURPLE, ":", "D"),
    ("#000000", (0, (5, 1)), "v"),
    ("#8C6D00", (0, (3, 1, 1, 1)), "P"),
)
_DPI = 130


def save_both(figure: Figure, stem: Path) -> list[Path]:
    """Writes <stem>.png and <stem>.svg, each atomically, and returns their paths.

    Raises:
        DatasetError: one cannot be written.
    """
    paths = []
    for kind in ("png", "svg"):
        path = stem.with_name(f"{stem.name}.{kind}")
        with replacing(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=_DPI)
        paths.append(path)
    return paths


def tidy(axes: Axes) -> None:
    """A light grid behind the data, no frame above and to the right, tick labels that can be read."""
    axes.grid(True, color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9.5)
