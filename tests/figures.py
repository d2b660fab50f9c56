"""What figures look like: words that can be read."""

from __future__ import annotations

import itertools

from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def readable_texts(figure: Figure, ticks: bool = True) -> list[str]:
    """Draws; the visible words, none of which may lie upon another or be cut off.

    Args:
        figure: any.
        ticks: look at the labels of axis ticks and at other numbers too.
    """
    FigureCanvasAgg(figure).draw()
    hidden = _tick_labels(figure, all_of_them=not ticks)
    found = figure.findobj(lambda artist: isinstance(artist, Text) and artist not in hidden)
    texts = [text for text in found if text.get_visible() and text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    boxes = [(text, box) for text, box in boxes if box.width > 0 and (ticks or not _is_number(text))]
    for (text, box), (other, other_box) in itertools.combinations(boxes, 2):
        width = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
        height = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
        assert width < 1 or height < 1, (text, other)
    for text, box in boxes:
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < figure.bbox.x1 + 1 and box.y1 < figure.bbox.y1 + 1, text
    return [text for text, _ in boxes]


def _tick_labels(figure: Figure, all_of_them: bool) -> set[Artist]:
    """Labels of axis ticks, or those alone that exist but are not drawn, since they lie beyond the limits."""
    found: set[Artist] = set()
    for axes in figure.axes:
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if all_of_them or not low <= tick.get_loc() <= high:
                    found |= {tick.label1, tick.label2}
    return found


def _is_number(text: str) -> bool:
    return text.lstrip("−-").replace(",", "").replace(".", "").isdigit()
