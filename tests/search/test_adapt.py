"""Adapting to footage: boxes from any of their sources, a data set, training and an index, and what is refused."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from person_search.errors import CheckpointError, ConfigError, DatasetError
from person_search.search.adapt import Tracking, boxes_file, collect_boxes, frame_size, training_config
from person_search.search.boxes import box_finder, coco_detector_config
from person_search.search.cli import main, parse_arguments
from person_search.search.sources import find_sources
from person_search.search.store import open_store
from person_search.search.video import Frame

NO_DETECTOR = {"config_file": None, "weights": None, "device": "cpu"}


@pytest.fixture(scope="module")
def footage(tmp_path_factory, write_video, walk) -> Path:
    """A folder with a video in which a patch walks to and fro."""
    folder = tmp_path_factory.mktemp("footage")
    write_video(folder / "yard.mp4", walk(0, 60))
    return folder


def truth(frame: int) -> tuple[float, float, float, float]:
    """x, y, width and height of the two things that are boxed in a frame: the walker and a place that stays."""
    return 5 + (3 * frame) % 150, 40, 40, 90


@pytest.fixture(scope="module")
def mot(tmp_path_factory) -> Path:
    lines = []
    for frame in range(60):
        x, y, w, h = truth(frame)
        lines += [
            f"{frame + 1},-1,{x},{y},{w},{h},0.9",
            f"{frame + 1},-1,150,10,30,80,0.8",
            f"{frame + 1},-1,0,0,9,9,0.1",
        ]
    path = tmp_path_factory.mktemp("boxes") / "yard.txt"
    path.write_text("\n".join(lines))
    return path


def frame_of(number: int) -> Frame:
    return Frame(np.zeros((160, 200, 3), np.uint8), number, number / 10, None)


def test_mot_detections_count_frames_from_one(footage, mot):
    (source,) = find_sources([footage])
    for whence in (mot, mot.parent):
        boxes, scores = box_finder(str(whence), **NO_DETECTOR)(source, frame_of(7))
        np.testing.assert_allclose(boxes[0], [26, 40, 66, 130])
        np.testing.assert_allclose(scores, [0.9, 0.8, 0.1])
    assert box_finder(str(mot), **NO_DETECTOR)(source, frame_of(999))[0].shape == (0, 4)


def test_coco_results_name_photos_and_frames(footage, tmp_path):
    entries = [
        {"image_id": "yard.mp4#frame=3", "category_id": 1, "bbox": [1, 2, 30, 60], "score": 0.7},
        {"image_id": "yard.mp4#frame=3", "category_id": 18, "bbox": [1, 2, 30, 60], "score": 0.9},
        {"image_id": "gate.jpg", "bbox": [5, 6, 10, 20], "score": 0.6},
    ]
    (tmp_path / "results.json").write_text(json.dumps(entries))
    find = box_finder(str(tmp_path / "results.json"), **NO_DETECTOR)
    (video,) = find_sources([footage])
    cv2.imwrite(str(tmp_path / "gate.jpg"), np.zeros((60, 60, 3), np.uint8))
    (photo,) = find_sources([tmp_path / "gate.jpg"])
    np.testing.assert_allclose(find(video, frame_of(3))[0], [[1, 2, 31, 62]])
    np.testing.assert_allclose(find(photo, frame_of(0))[0], [[5, 6, 15, 26]])


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.json", "{}", "expected COCO results"),
        ("a.json", "[{}]", "entry 0"),
        ("a.json", "no JSON", "a.json"),
        ("a.txt", "1,2,3", "line 1"),
        ("missing.txt", None, "missing.txt"),
    ],
)
def test_damaged_files_of_boxes_are_named(tmp_path, name, content, named):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=named):
        box_finder(str(tmp_path / name), **NO_DETECTOR)


def test_what_gives_no_boxes_is_refused():
    with pytest.raises(ConfigError, match="'coco'"):
        box_finder("yolo", **NO_DETECTOR)


def test_frames_and_boxes_become_a_data_set(footage, mot, tmp_path):
    sources = find_sources([footage])
    find = box_finder(str(mot), **NO_DETECTOR)
    content = collect_boxes(sources, Fraction(1, 5), find, tmp_path / "frames", 0.5)
    assert len(content["images"]) == 30 and len(content["annotations"]) == 60  # the box of score 0.1 is left out
    assert "person_id" not in content["annotations"][0]
    image, annotation = content["images"][3], content["annotations"][6]
    assert annotation["image_id"] == image["id"] and annotation["bbox"] == [5 + 18, 40, 40, 90]
    assert cv2.imread(str(tmp_path / "frames" / image["file_name"])).shape == (160, 200, 3)
    with pytest.raises(DatasetError, match="only 6 persons"):
        collect_boxes(sources, Fraction(2), find, tmp_path / "frames", 0.5)


def test_a_tracker_joins_boxes_between_the_frames_that_train(footage, mot, tmp_path):
    """At 0.2 s the walker leaves the box of before by 6 pixels of 40; the tracker sees every frame all the same."""
    sources = find_sources([footage])
    find = box_finder(str(mot), **NO_DETECTOR)
    plain, tracked = (
        collect_boxes(sources, Fraction(1, 5), find, tmp_path / "frames", 0.5, tracking)
        for tracking in (None, Tracking(None))
    )
    # The same frames and boxes, which have tracklets besides; the identities of the file, if it had any, are not read.
    for before, after in zip(plain["annotations"], tracked["annotations"], strict=True):
        assert "tracklet_id" not in before and {**before, "tracklet_id": after["tracklet_id"]} == after
    assert plain["images"] == tracked["images"] and len(plain["images"]) == 30
    walker = [a["tracklet_id"] for a in tracked["annotations"] if a["bbox"][1] == 40]
    stays = [a["tracklet_id"] for a in tracked["annotations"] if a["bbox"][1] == 10]
    assert len(set(stays)) == 1 and not set(stays) & set(walker)
    assert len(set(walker)) <= 2  # he jumps back once
    twice = collect_boxes(
        [*sources, *find_sources([footage])], Fraction(1, 5), find, tmp_path / "frames", 0.5, Tracking(None)
    )
    numbers = [annotation["tracklet_id"] for annotation in twice["annotations"]]
    assert not set(numbers[:60]) & set(numbers[60:])


@pytest.mark.parametrize(
    ("arguments", "used"), [([], False), (["--tracklets", "all"], True), (["--tracklets", "0.1s"], True)]
)
def test_tracklets_are_evidence_only_where_they_are_asked_for(footage, mot, tmp_path, arguments, used):
    out = tmp_path / "out"
    args = parse_arguments([
        "adapt", str(footage), "--out", str(out), "--boxes", str(mot), "--every", "0.2s", *arguments
    ])  # fmt: skip
    boxes = boxes_file(args, find_sources([footage]), out)
    annotations = json.loads(boxes.read_text())["annotations"]
    assert all(("tracklet_id" in annotation) == used for annotation in annotations)
    assert training_config(args, boxes, out).SSL.CLUSTERING.TRACKLETS == used


def test_a_tracker_that_would_miss_frames_of_the_training_is_refused(footage, mot, tmp_path, capsys):
    command = ["adapt", str(footage), "--out", str(tmp_path / "out"), "--boxes", str(mot), "--tracklets", "1s"]
    assert main(command) == 2
    assert "--tracklets 1s is longer than --every 0.5s" in capsys.readouterr().err


def test_a_checkpoint_of_ours_draws_boxes(footage, checkpoint, searcher, textured):
    (source,) = find_sources([footage])
    picture = textured(0, 160, 200)
    boxes, scores = box_finder(str(checkpoint), **NO_DETECTOR)(source, Frame(picture, 0, 0.0, None))
    np.testing.assert_array_equal(boxes, searcher.detect(picture).boxes)
    assert len(scores) > 1


def test_detectron2s_detector_is_built_and_its_weights_are_read(footage, tmp_path, textured):
    cfg = coco_detector_config(None, "cpu")
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80 and cfg.MODEL.WEIGHTS.startswith("detectron2://COCO-Detection/")
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "detector.pth")
    (source,) = find_sources([footage])
    find = box_finder("coco", config_file=None, weights=str(tmp_path / "detector.pth"), device="cpu")
    boxes, scores = find(source, Frame(textured(0, 64, 80), 0, 0.0, None))
    assert boxes.shape == (len(scores), 4)
    with pytest.raises(CheckpointError, match="--detector-weights"):
        box_finder("coco", config_file=None, weights=str(tmp_path / "missing.pth"), device="cpu")


@pytest.mark.parametrize(
    ("heights", "size"),
    [([80, 80, 82], 752), ([200, 90, 104, 20, 104], 576), ([400] * 3, 384), ([9] * 3, 1152)],
)
def test_frames_are_resized_by_the_heights_of_the_persons(heights, size):
    images = [{"id": 7, "height": 576, "width": 768}, {"id": 8, "height": 768, "width": 576}]
    annotations = [{"image_id": 7 + k % 2, "bbox": [0, 0, 30, height]} for k, height in enumerate(heights)]
    assert frame_size({"images": images, "annotations": annotations}) == size


def test_footage_becomes_a_model_and_an_index(footage, mot, tiny_cfg, tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(tiny_cfg.dump())
    out = tmp_path / "adapted"
    command = [
        "adapt", str(footage), "--out", str(out), "--boxes", str(mot), "--every", "0.2s", "--epochs", "1",
        "--config-file", str(tmp_path / "tiny.yaml"), "--device", "cpu", "--set", "SOLVER.IMS_PER_BATCH", "2",
        "--set", "INPUT.MIN_SIZE_TRAIN", "(96,)", "--set", "INPUT.MAX_SIZE_TRAIN", "160", "--set", "SEED", "1",
        "--set", "SSL.MEMORY.CALIBRATION_FRAMES", "4", "--set", "SSL.EXEMPLAR.SCALES", "((24, 12), (48, 24))",
    ]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "about" in (out / "training" / "log.txt").read_text() and "15 iterations" in printed.out + printed.err
    assert torch.load(out / "training" / "model_final.pth", weights_only=True)["config"]
    store = open_store(str(out / "store"))
    assert [Path(state.source).name for state in store.sources()] == ["yard.mp4"]
    store.close()
    # Everything that is there already is taken over.
    written = (out / "training" / "model_final.pth").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "training" / "model_final.pth").stat().st_mtime_ns == written


def test_a_live_stream_is_refused(tmp_path, capsys):
    assert main(["adapt", "rtsp://camera/1", "--out", str(tmp_path)]) == 2
    assert "live stream" in capsys.readouterr().err
