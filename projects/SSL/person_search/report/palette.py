"""Colors, distinguishable for the color-blind and mostly Okabe and Ito's, and style of the axes of all figures."""

from matplotlib.axes import Axes

BLUE, VERMILION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#B8529B", "#666666"
BROWN, BLACK, INK, GRID = "#8C6D00", "#000000", "#333333", "#E5E5E5"
# Colors of correct detections, wrong detections, and the query.
CORRECT, WRONG, QUERY = "#0A7CFF", "#F0640A", "#222222"
# Ten colors that differ in lightness as well as in hue.
CATEGORIES = (
    *(BLUE, VERMILION, GREEN, "#CC79A7", "#56B4E9"),
    *(BROWN, BLACK, "#7F3C8D", "#E68310", "#5F5F5F"),
)


def tidy(axes: Axes, label_size: float = 9.5) -> None:
    """Styles axes: a light grid behind the data, no frame at the top and right, tick labels of a size in points."""
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=label_size)
