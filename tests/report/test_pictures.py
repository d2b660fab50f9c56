"""Pictures of search results: which queries are drawn, from which pixels, in which colors."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from person_search.errors import DatasetError
from person_search.report.pictures import CORRECT, QUERY, WRONG, draw_search_results, results_scenes, results_sheet

from ..figures import readable_texts

FRAME = (120, 200)  # height, width


def color_of(frame: int) -> tuple[int, int, int]:
    """The RGB color of the person in a frame: a different one in each."""
    return (40 + 20 * frame, 250 - 20 * frame, 60 + 35 * (frame % 5))


def box_of(frame: int) -> list[float]:
    return [30.0 + 12 * frame, 20.0, 54.0 + 12 * frame, 80.0]


def paint(frame: int) -> np.ndarray:
    """A grey frame whose box is filled with its color."""
    image = np.full((*FRAME, 3), 128, np.uint8)
    x0, y0, x1, y1 = (round(v) for v in box_of(frame))
    image[y0:y1, x0:x1] = color_of(frame)
    return image


def result(frame: int, correct: bool, rank: int) -> dict:
    return {
        "frame": f"f{frame}.png", "box": box_of(frame), "score": 0.9, "similarity": 0.9 - rank / 20, "iou": None,
        "correct": correct,
    }  # fmt: skip


def query(frame: int, ap: float | None, correct: str) -> dict:
    """A query in a frame; `correct` has a letter for each result: y or n, in the frames that follow."""
    results = [result((frame + 1 + rank) % 10, letter == "y", rank) for rank, letter in enumerate(correct)]
    return {
        "frame": f"f{frame}.png", "box": box_of(frame), "person_id": 3, "AP": ap, "matches": 4,
        "first_correct_rank": None, "matches_found": correct.count("y"), "results": results,
    }  # fmt: skip


def read_frame(name: str) -> np.ndarray:
    return paint(int(name[1:-4]))


@pytest.fixture
def records(tmp_path: Path) -> list[dict]:
    folder = tmp_path / "frames"
    folder.mkdir()
    for frame in range(10):
        cv2.imwrite(str(folder / f"f{frame}.png"), paint(frame)[:, :, ::-1])
    return [{"image_id": f"f{frame}.png", "file_name": str(folder / f"f{frame}.png")} for frame in range(10)]


def boxes(axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text().strip()]


def test_a_row_has_the_query_and_its_results_in_their_colors():
    rows = [query(0, 0.75, "ynynnn"), query(5, 0.0, "nnnnnn")]
    figure = results_sheet(rows, read_frame, ranks=5, title="two queries")
    assert len(figure.axes) == 12
    expected = [QUERY, CORRECT, WRONG, CORRECT, WRONG, WRONG, QUERY, *[WRONG] * 5]
    for axes, color in zip(figure.axes, expected, strict=True):
        (box,) = boxes(axes)
        assert box.get_edgecolor()[:3] == to_rgb(color)
        assert all(spine.get_edgecolor()[:3] == to_rgb(color) for spine in axes.spines.values())
    shown = texts(figure)
    assert [axes.get_title() for axes in figure.axes[:6]] == ["query", *[f"rank {rank}" for rank in range(1, 6)]]
    for text in ("1   ✓  0.900", "2   ✗  0.850", "f0.png", "f3.png", "two queries", "correct ✓", "wrong ✗"):
        assert text in shown, text
    assert "AP 75.0 %,\n2 of 4\nmatches found" in shown


def test_missing_results_and_queries_without_matches():
    figure = results_sheet([query(0, None, "y"), query(1, 0.0, "")], read_frame, ranks=3)
    shown = texts(figure)
    assert shown.count("no further\ndetection") == 5
    assert "no match\nto find" in shown


def test_no_text_covers_another():
    long = query(0, 1.0, "ynyyn")
    for entry in (long, *long["results"]):
        entry["frame"] = "recordings/market-place/camera-12/2021-03-04.mp4#frame=001234"
    rows = [long, {**query(1, 0.5, "yn"), "matches": 4321, "matches_found": 1234}, query(2, None, "n")]
    figure = results_sheet(rows, lambda name: paint(1), title="6 of 2900 queries, the best first; mAP over all 100.0 %")
    assert any(text.startswith("…") and text.endswith("#frame=001234") for text in texts(figure))
    readable_texts(figure)
    readable_texts(results_scenes(long, lambda name: paint(1)))
    readable_texts(results_scenes(rows[1], read_frame))


def test_scenes_show_whole_frames_with_boxes_in_place():
    row = query(0, 0.5, "ynyn")
    figure = results_scenes(row, read_frame, ranks=5)
    assert len(figure.axes) == 6
    for number, (axes, entry) in enumerate(zip(figure.axes, [row, *row["results"]], strict=False)):
        (box,) = boxes(axes)
        assert [box.get_x(), box.get_y(), box.get_x() + box.get_width(), box.get_y() + box.get_height()] == entry["box"]
        np.testing.assert_array_equal(axes.images[0].get_array(), read_frame(entry["frame"]))
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, FRAME[1]), (FRAME[0], 0))
        assert entry["frame"] in axes.get_title(loc="left")
        assert box.get_edgecolor()[:3] == to_rgb([QUERY, CORRECT, WRONG, CORRECT, WRONG][number])
    assert texts(figure).count("no further\ndetection") == 1


def test_the_picture_has_the_right_pixels_at_the_right_places(tmp_path, records, monkeypatch):
    rows = [query(0, 1.0, "yynny"), query(4, 0.1, "nnnny")]
    (tmp_path / "queries.json").write_text(json.dumps(rows))
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    (path,) = draw_search_results(tmp_path / "queries.json", records, tmp_path / "pictures", queries=2)
    assert [p.name for p in path.parent.iterdir()] == ["search_results.png"]
    picture = cv2.imread(str(path))[:, :, ::-1].astype(int)
    height, width = picture.shape[:2]
    entries = [entry for row in rows for entry in (row, *row["results"])]
    for axes, entry in zip(figures[0].axes, entries, strict=True):
        place = axes.get_position()
        color = QUERY if "correct" not in entry else CORRECT if entry["correct"] else WRONG
        left, middle = round(place.x0 * width), round((1 - (place.y0 + place.y1) / 2) * height)
        assert np.abs(picture[middle, left] - 255 * np.array(to_rgb(color))).max() < 12
        # The person of that frame stands in the middle of the box.
        (box,) = boxes(axes)
        x, y = axes.transAxes.inverted().transform(
            axes.transData.transform((box.get_x() + box.get_width() / 2, box.get_y() + box.get_height() / 2))
        )
        column = round((place.x0 + x * place.width) * width)
        row = round((1 - (place.y0 + y * place.height)) * height)
        np.testing.assert_allclose(picture[row, column], color_of(int(entry["frame"][1:-4])), atol=6)


def test_the_numbers_of_queries_and_scenes(tmp_path, records):
    rows = [query(frame, ap, "ynyny") for frame, ap in enumerate([0.2, 0.9, 0.4])]
    (tmp_path / "queries.json").write_text(json.dumps(rows))
    drawn = draw_search_results(tmp_path / "queries.json", records, tmp_path / "p", queries=0, scenes=2)
    assert [path.name for path in drawn] == ["search_scenes_1.png", "search_scenes_2.png"]
    assert draw_search_results(tmp_path / "queries.json", records, tmp_path / "p", queries=0) == []


def test_the_sheet_tells_the_map_of_all_queries(tmp_path, records, monkeypatch):
    rows = [query(frame, ap, "yn") for frame, ap in enumerate([0.2, 0.9, None, 0.4])]
    (tmp_path / "queries.json").write_text(json.dumps(rows))
    titles = []
    sheet = results_sheet
    monkeypatch.setattr("person_search.report.pictures.results_sheet", lambda *a: (titles.append(a[-1]), sheet(*a))[1])
    draw_search_results(tmp_path / "queries.json", records, tmp_path / "p", queries=2)
    assert titles == ["2 of 4 queries, the best first; mAP over all 50.0 %"]


def test_a_frame_that_is_not_there_is_named(tmp_path, records):
    file = tmp_path / "queries.json"
    file.write_text(json.dumps([query(0, 1.0, "yyyyy")]))
    with pytest.raises(DatasetError, match="frame f3.png is not in the dataset"):
        draw_search_results(file, records[:3], tmp_path / "pictures")
    Path(records[2]["file_name"]).unlink()
    with pytest.raises(DatasetError, match="f2.png: the image is missing"):
        draw_search_results(file, records, tmp_path / "pictures")
    assert not (tmp_path / "pictures").exists()
