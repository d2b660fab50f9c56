"""Sequences with MOT ground truth: PETS09-S2L1 as it is, and small ones for every rule."""

from __future__ import annotations

import collections

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.data.images import read_image
from person_search.data.mot import load_mot, read_ground_truth, register_mot
from person_search.errors import ConfigError, DatasetError
from PIL import Image


@pytest.fixture
def pets(shared, tmp_path, monkeypatch):
    """Video and ground truth; stamps of the video are kept below tmp_path."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    folder = shared / "data" / "pets09_s2l1"
    return folder / "vtest.avi", folder / "gt.txt"


@pytest.fixture
def name():
    yield "mot_test"
    DatasetCatalog.pop("mot_test", None)
    MetadataCatalog.pop("mot_test", None)


@pytest.fixture
def sequence(tmp_path):
    """A folder of five frames of 60 x 40 and a function that writes its ground truth."""
    folder = tmp_path / "img1"
    folder.mkdir()
    for number in range(1, 6):
        Image.new("RGB", (60, 40)).save(folder / f"{number:06}.png")

    def write(*lines):
        (tmp_path / "gt.txt").write_text("\n".join(lines))
        return folder, tmp_path / "gt.txt"

    return write


def test_all_of_pets(pets, name):
    register_mot(name, *pets)
    records = DatasetCatalog.get(name)
    people = [(k, a) for k, record in enumerate(records) for a in record["annotations"]]
    # The file has 4,650 lines; 174 of them, far away behind a fence, are flagged as not to be considered.
    assert (len(records), len(people)) == (795, 4476)
    assert len({a["person_id"] for _, a in people}) == 19
    assert all((r["height"], r["width"]) == (576, 768) and "camera_id" not in r for r in records)
    assert records[122]["file_name"] == f"{pets[0]}#frame=122"
    assert records[122]["image_id"] == "vtest.avi#frame=122"
    expected = collections.Counter()
    for line in pets[1].read_text().splitlines():
        frame, pid, x, y, w, h, flag = map(float, line.split(",")[:7])
        expected[int(frame) - 1, int(pid), max(x, 0), max(y, 0), min(x + w, 768), min(y + h, 576)] += int(flag)
    assert collections.Counter((k, a["person_id"], *a["bbox"]) for k, a in people) == +expected


def test_queries_of_pets(pets, name):
    register_mot(name, *pets, queries_per_identity=5)
    protocol = MetadataCatalog.get(name).load_protocol()
    assert protocol.kind == "custom" and not protocol.galleries
    assert collections.Counter(collections.Counter(q.person_id for q in protocol.queries).values()) == {5: 19}


def test_a_span_of_frames_is_counted_as_in_the_ground_truth(pets):
    video, truth = pets
    records = load_mot("d", video, truth, frames=(2, 397), camera_id=0)
    assert (records[0]["file_name"], records[-1]["file_name"]) == (f"{video}#frame=1", f"{video}#frame=396")
    assert all(record["camera_id"] == 0 for record in records)
    lines = [line.split(",") for line in truth.read_text().splitlines()]
    of_second = [int(fields[1]) for fields in lines if fields[0] == "2"]
    assert [a["person_id"] for a in records[0]["annotations"]] == of_second
    rows = [a["instance_index"] for record in records for a in record["annotations"]]
    assert rows == list(range(sum(2 <= int(fields[0]) <= 397 and fields[6] == "1" for fields in lines)))


def test_boxes_lie_on_the_moving_people(pets):
    """Where the boxes of a frame are, its pixels differ from the empty scene; boxes of much later frames lie off."""
    records = load_mot("d", *pets, frames=(60, 140))
    frames = range(0, 61, 4)
    images = [cv2.cvtColor(read_image(records[k]["file_name"]), cv2.COLOR_RGB2GRAY) for k in frames]
    change = np.abs(np.array(images, float) - np.median(images, axis=0))

    def inside(later):
        means = []
        for k, difference in zip(frames, change, strict=True):
            for x0, y0, x1, y1 in (map(int, a["bbox"]) for a in records[k + later]["annotations"]):
                quarter = (x1 - x0) // 4
                means.append(difference[y0:y1, x0 + quarter : x1 - quarter].mean())
        return np.mean(means)

    assert inside(0) > 3 * change.mean()
    assert inside(0) > max(inside(12), inside(20))


def test_columns_of_every_layout(sequence):
    six = "1,7,3,4,20,30"
    cases = {
        six: [7],
        f"{six},1": [7],
        f"{six},0": [],
        f"{six},1,1": [7],
        f"{six},1,7": [],
        f"{six},1,1,0.3": [7],
        f"{six},1,3,0.3": [],
        f"{six},0,1,1": [],
        f"{six},1,-4.1,-7.3,0": [7],
        f"{six},0,-4.1,-7.3,0": [],
        f"{six},1,-1,-1,-1": [7],
        "1,-1,3,4,20,30": [-1],
    }
    for line, expected in cases.items():
        records = load_mot("d", *sequence(line))
        assert [a["person_id"] for a in records[0]["annotations"]] == expected, line
        assert len(records) == 5


row = st.tuples(
    st.integers(1, 9), st.integers(-1, 30), *[st.floats(-100, 100, allow_nan=False)] * 4, st.sampled_from([0, 1])
)


@given(st.lists(row, max_size=12), st.sampled_from(["\n", "\r\n"]), st.integers(0, 3))
@settings(deadline=None)
def test_lines_survive(tmp_path_factory, rows, end, blank):
    file = tmp_path_factory.mktemp("gt") / "gt.txt"
    file.write_bytes(end.join([*(",".join(map(repr, row)) for row in rows), *[""] * blank]).encode())
    expected = collections.defaultdict(list)
    for line, (frame, pid, x, y, w, h, flag) in enumerate(rows, 1):
        if flag:
            expected[frame].append((line, (x, y, x + w, y + h), pid))
    found = {frame: [(n, p.bbox, p.person_id) for n, p in of] for frame, of in read_ground_truth(file).items()}
    assert found == expected


@pytest.mark.parametrize(
    "line, message",
    [
        ("1,7,3,4,20", "expected 7 numbers"),
        ("1,7,3,4,20,30,1,1", "expected 7 numbers"),
        ("1,7,3,4,wide,30,1", "expected 7 numbers 'frame,id,x,y,w,h,...', found '1,7,3,4,wide,30,1'"),
        ("1.5,7,3,4,20,30,1", "expected 7 numbers"),
        ("1,nan,3,4,20,30,1", "expected 7 numbers"),
        ("inf,7,3,4,20,30,1", "expected 7 numbers"),
        ("6,7,3,4,20,30,1", "frame 6 is not in the sequence, whose frames are 1 to 5"),
        ("0,7,3,4,20,30,1", "frame 0 is not in the sequence, whose frames are 1 to 5"),
    ],
)
def test_bad_lines_are_named(sequence, line, message):
    with pytest.raises(DatasetError, match=f"gt.txt: line 3: {message}"):
        load_mot("d", *sequence("1,7,3,4,20,30,1", "", line))


def test_a_file_of_other_columns_is_named(sequence):
    with pytest.raises(DatasetError, match="gt.txt: line 1: expected 6 to 10 numbers"):
        load_mot("d", *sequence("1 7 3 4 20 30"))


def test_images_named_by_numbers_are_those_frames(sequence):
    folder, truth = sequence("4,7,3,4,20,30")
    (folder / "000002.png").unlink()
    (folder / "notes.txt").touch()
    records = load_mot("d", folder, truth)
    assert [r["image_id"] for r in records] == ["000001.png", "000003.png", "000004.png", "000005.png"]
    assert [len(r["annotations"]) for r in records] == [0, 0, 1, 0]
    assert (records[0]["height"], records[0]["width"]) == (40, 60)
    folder, truth = sequence("2,7,3,4,20,30")
    with pytest.raises(DatasetError, match="line 1: frame 2 is not in the sequence"):
        load_mot("d", folder, truth)


@pytest.mark.parametrize("pattern", ["frame_{}.png", "{}.png", "cam2_{:03}_left.png", "2026-01-02 {}.png"])
def test_a_number_in_a_name_is_the_frame_whatever_the_text_order(sequence, pattern):
    folder, truth = sequence(*(f"{frame},{frame},3,4,20,30" for frame in range(1, 13)))
    for file in folder.iterdir():
        file.unlink()
    for number in range(1, 13):
        Image.new("RGB", (60, 40)).save(folder / pattern.format(number))
    records = load_mot("d", folder, truth)
    assert [(r["image_id"], r["annotations"][0]["person_id"]) for r in records] == [
        (pattern.format(number), number) for number in range(1, 13)
    ]


def test_hidden_files_and_folders_are_no_frames(sequence):
    folder, truth = sequence("2,7,3,4,20,30")
    (folder / "._000001.png").write_bytes(b"what macOS leaves beside a file")
    (folder / "masks.png").mkdir()
    assert [r["image_id"] for r in load_mot("d", folder, truth)] == [f"{n:06}.png" for n in range(1, 6)]


@pytest.mark.parametrize(
    "name, message",
    [
        ("cover.png", "cover.png beside 000001.png"),
        ("000006_b.png", "000006_b.png beside 000001.png"),
        ("1-2.png", "1-2.png beside"),
    ],
)
def test_a_foreign_image_makes_the_numbering_unclear(sequence, name, message):
    folder, truth = sequence("2,7,3,4,20,30")
    Image.new("RGB", (60, 40)).save(folder / name)
    with pytest.raises(DatasetError, match=f"d: .*have no frame number .*{message}.*remove"):
        load_mot("d", folder, truth)


def test_names_that_differ_in_two_numbers_are_unclear(sequence):
    folder, truth = sequence("2,7,3,4,20,30")
    for file in folder.iterdir():
        file.rename(folder / f"{int(file.stem) // 3}_{file.stem}.png")
    with pytest.raises(DatasetError, match="differ in 2 numbers of their names .*rename them to the frame number"):
        load_mot("d", folder, truth)


def test_images_from_zero_beside_lines_from_one_are_unclear(sequence):
    folder, truth = sequence("1,7,3,4,20,30", "3,8,3,4,20,30")
    for file in sorted(folder.iterdir()):
        file.rename(folder / f"{int(file.stem) - 1:06}.png")
    with pytest.raises(DatasetError, match=r"000000.png is frame 0, but .* has no line for frame 0.*FRAMES \[0, 4"):
        load_mot("d", folder, truth)
    records = load_mot("d", folder, truth, frames=(0, 4))
    assert [len(r["annotations"]) for r in records] == [0, 1, 0, 1, 0]
    truth.write_text("0,7,3,4,20,30\n")
    assert len(load_mot("d", folder, truth)) == 5


def test_two_images_of_one_number_are_named(sequence):
    folder, truth = sequence("2,7,3,4,20,30")
    (folder / "3.png").write_bytes((folder / "000003.png").read_bytes())
    with pytest.raises(DatasetError, match="000003.png and .*3.png are both frame 3"):
        load_mot("d", folder, truth)


def test_frames_outside_the_sequence_are_refused(sequence):
    with pytest.raises(DatasetError, match=r"d: frames 2 to 9 are requested, .* has 1 to 5"):
        load_mot("d", *sequence("2,7,3,4,20,30"), frames=(2, 9))


def test_lines_outside_the_span_do_not_count(sequence):
    records = load_mot("d", *sequence("1,7,3,4,20,30", "3,8,3,4,20,30", "5,9,3,4,20,30"), frames=(2, 4))
    assert [a["person_id"] for r in records for a in r["annotations"]] == [8]


def test_every_nth_frame_of_a_span(sequence):
    paths = sequence(*(f"{frame},{frame},3,4,20,30" for frame in range(1, 6)))
    taken = {
        step: [r["annotations"][0]["person_id"] for r in load_mot("d", *paths, frames=(2, 5, step))]
        for step in (1, 2, 9)
    }
    assert taken == {1: [2, 3, 4, 5], 2: [2, 4], 9: [2]}


def test_strict_and_dropped_boxes(sequence, caplog, name):
    paths = sequence("1,7,70,4,20,30", "1,8,50,4,20,30", "2,8,1,1,9,9")
    records = load_mot("d", *paths)
    assert [a["bbox"] for a in records[0]["annotations"]] == [[50.0, 4.0, 60.0, 34.0]]
    assert "dropped 1 boxes" in caplog.text
    register_mot(name, *paths, strict=True)
    with pytest.raises(DatasetError, match="mot_test: box 0 of 000001.png"):
        DatasetCatalog.get(name)


def test_missing_parts_are_explained(sequence, tmp_path):
    folder, truth = sequence("1,7,3,4,20,30")
    with pytest.raises(DatasetError, match="d: the file .*no.txt is missing.*MOT's text format"):
        load_mot("d", folder, tmp_path / "no.txt")
    with pytest.raises(DatasetError, match="d: .*nowhere is missing; expected a folder of images or a video"):
        load_mot("d", tmp_path / "nowhere", truth)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="d: .*empty holds no image"):
        load_mot("d", tmp_path / "empty", truth)


@pytest.mark.parametrize(
    ("ids", "reason"),
    [((7, 8, -1, -1), "no person with an identity is in two frames"), ((-1, -1, -1, -1), "no person has an identity")],
)
def test_nobody_twice_means_no_search(sequence, name, ids, reason):
    register_mot(name, *sequence(*(f"{frame},{number},3,4,20,30" for frame, number in enumerate(ids, 1))))
    protocol = MetadataCatalog.get(name).load_protocol()
    assert protocol.queries == () and protocol.no_search.startswith(reason)


def test_what_does_not_count_is_counted_by_its_reason(sequence, caplog):
    lines = ("1,7,3,4,20,30,1,1,1", "1,8,3,4,20,30,1,7,1", "2,9,3,4,20,30,1,7,1", "2,3,3,4,20,30,0,1,1")
    with caplog.at_level("INFO", logger="person_search"):
        records = load_mot("d", *sequence(*lines))
    assert [a["person_id"] for r in records for a in r["annotations"]] == [7]
    (line,) = [r for r in caplog.records if "used; skipped 2 of class 7, 1 of flag 0" in r.getMessage()]
    assert line.getMessage().startswith("d: 1 of 4 boxes of") and line.levelname == "INFO"
    records = load_mot("d", *sequence(*lines), categories=(1, 7))
    assert [a["person_id"] for r in records for a in r["annotations"]] == [7, 8, 9]
    load_mot("d", *sequence(*lines), categories=(2,))
    assert caplog.records[-1].levelname == "WARNING" and "d: 0 of 4 boxes" in caplog.records[-1].getMessage()


def test_detections_train_from_the_least_score_on(sequence, caplog):
    lines = ("1,-1,3,4,20,30,0.9", "1,-1,30,4,20,30,0.5", "2,-1,3,4,20,30,0.49", "3,-1,3,4,20,30,1")
    with caplog.at_level("INFO", logger="person_search"):
        records = load_mot("d", *sequence(*lines), min_score=0.5)
    assert [[a["bbox"][0] for a in r["annotations"]] for r in records] == [[3, 30], [], [3], [], []]
    assert {a["person_id"] for r in records for a in r["annotations"]} == {-1}
    assert "skipped 1 below the score 0.5" in caplog.text
    ten = [f"{line},-1,-1,-1" for line in lines]  # MOT 2015's columns
    assert load_mot("d", *sequence(*ten), min_score=0.5) == records


def test_scores_in_the_place_of_flags_are_refused(sequence):
    with pytest.raises(DatasetError, match="line 2: the seventh column is 0.93, .*: set MIN_SCORE"):
        load_mot("d", *sequence("1,-1,3,4,20,30,1", "1,-1,3,4,20,30,0.93"))
    with pytest.raises(DatasetError, match="line 1: has no score, and MIN_SCORE asks for 0.5"):
        load_mot("d", *sequence("1,-1,3,4,20,30"), min_score=0.5)


def test_registration_reads_nothing_and_is_repeatable(name, tmp_path):
    register_mot(name, tmp_path / "no.avi", tmp_path / "no.txt", frames=[1, 5])
    register_mot(name, tmp_path / "no.avi", tmp_path / "no.txt", frames=(1, 5))
    with pytest.raises(ConfigError, match="'mot_test' is taken"):
        register_mot(name, tmp_path / "no.avi", tmp_path / "no.txt", frames=(1, 6))


@pytest.mark.parametrize("frames", [[1], [1, 2, 3, 4], [1, 2, 0], [3, 2], [-1, 4], [1.0, 4], ["1", "4"], [True, 4]])
def test_bad_spans_are_named(name, tmp_path, frames):
    with pytest.raises(ConfigError, match=r"mot_test: frames is .*expected \[first, last\]"):
        register_mot(name, tmp_path / "no.avi", tmp_path / "no.txt", frames=frames)


def test_bad_counts_are_named(name, tmp_path):
    with pytest.raises(ConfigError, match="mot_test: queries_per_identity is 0"):
        register_mot(name, tmp_path, tmp_path, queries_per_identity=0)
    with pytest.raises(ConfigError, match="mot_test: camera_id is -1"):
        register_mot(name, tmp_path, tmp_path, camera_id=-1)
    with pytest.raises(ConfigError, match="mot_test: min_score is nan"):
        register_mot(name, tmp_path, tmp_path, min_score=float("nan"))
    with pytest.raises(ConfigError, match=r"mot_test: categories is \['person'\], expected numbers"):
        register_mot(name, tmp_path, tmp_path, categories=["person"])


def test_an_unreadable_image_is_counted_and_left_to_whoever_loads_it(sequence, caplog):
    folder, truth = sequence("1,7,2,3,10,20", "2,7,30,3,10,20")
    (folder / "000002.png").write_bytes(b"no image")
    records = load_mot("m", folder, truth)
    assert f"m: 1 images cannot be read (for example {folder / '000002.png'})" in caplog.text
    assert [a["bbox"] for r in records for a in r["annotations"]] == [[2, 3, 12, 23], [30, 3, 40, 23]]
    with pytest.raises(DatasetError, match="000002.png: cannot be read as an image"):
        read_image(records[1]["file_name"])


def test_what_is_no_video_is_refused(sequence, pets):
    folder, truth = sequence("1,7,2,3,10,20")
    with pytest.raises(DatasetError, match="000001.png is a single image; expected a folder of images or a video"):
        load_mot("m", folder / "000001.png", truth)
    # OpenCV draws the letters of a text file, frame by frame.
    with pytest.raises(DatasetError, match="gt.txt: cannot be read as a video, it is a text file"):
        load_mot("m", pets[1], truth)


def test_a_byte_order_mark_does_no_harm(sequence):
    folder, truth = sequence("1,7,2,3,10,20")
    records = load_mot("m", folder, truth)
    truth.write_bytes(b"\xef\xbb\xbf" + truth.read_bytes())
    assert load_mot("m", folder, truth) == records
