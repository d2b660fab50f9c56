"""datasets/prepare_masks.py: the providers, resumption, and what the file gives to training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import detectron2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from person_search.data.masks import MaskStore, attach_masks, box_window, limit_to_box
from person_search.data.prw import load_prw
from person_search.errors import DatasetError
from PIL import Image
from pycocotools import mask as mask_util

from ..programs import load_program

HEIGHT, WIDTH = 120, 160
BOXES = [[20.0, 10.0, 60.0, 110.0], [90.0, 20.0, 125.0, 115.0]]


@pytest.fixture(scope="module")
def script(repository):
    return load_program(repository / "datasets" / "prepare_masks.py")


def person(box):
    """A body: an ellipse that touches the sides of its box."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    centre, half = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), ((box[2] - box[0]) / 2, (box[3] - box[1]) / 2)
    return ((x - centre[0]) / half[0]) ** 2 + ((y - centre[1]) / half[1]) ** 2 < 1


@pytest.fixture
def records(tmp_path, monkeypatch):
    """Four frames with two colored persons each, registered as "toy_train"."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    rng = np.random.default_rng(0)
    found = []
    for i in range(4):
        pixels = rng.integers(100, 130, (HEIGHT, WIDTH, 3))
        for box, color in zip(BOXES, ([190, 30, 40], [20, 30, 200]), strict=True):
            pixels[person(box)] = color + rng.integers(0, 20, (int(person(box).sum()), 3))
        file = tmp_path / f"f{i}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(file)
        annotations = [
            {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0, "person_id": k,
             "instance_index": 2 * i + k}
            for k, box in enumerate(BOXES)
        ]  # fmt: skip
        size = {"height": HEIGHT, "width": WIDTH}
        found.append({"file_name": str(file), "image_id": file.name, "annotations": annotations, **size})
    DatasetCatalog.register("toy_train", lambda: found)
    yield found
    DatasetCatalog.remove("toy_train")


def run(script, *arguments):
    return script.main(["--dataset", "toy_train", "--provider", "grabcut", *map(str, arguments)])


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def test_grabcut_finds_the_persons_and_training_finds_the_file(script, records, capsys):
    assert run(script) == 0
    assert "toy_train: 8 masks for 8 persons, 0 images unreadable" in capsys.readouterr().out
    attach_masks(records, "toy_train")
    for record in records:
        for annotation, box in zip(record["annotations"], BOXES, strict=True):
            assert iou(mask_util.decode(annotation["segmentation"]).astype(bool), person(box)) > 0.9


def test_grabcut_is_repeatable_and_takes_any_box(script):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for box in ([0, 0, WIDTH, HEIGHT], [3, 3, 3.5, 60], [0, 0, 1, 1], [158.7, 118.7, 160, 120], [5, 5, 9, 7]):
        masks = [script.grabcut(image, np.array(box, dtype=np.float64)) for _ in range(2)]
        if masks[0] is None:
            assert masks[1] is None
        else:
            assert masks[0].shape == (HEIGHT, WIDTH) and masks[0].dtype == bool
            assert np.array_equal(*masks)
    assert script.grabcut(image, np.array([20.0, 10, 60, 110])) is not None


@pytest.mark.timeout(120)
def test_grabcut_on_real_frames(script, shared, tmp_path):
    subprocess.run(
        [sys.executable, shared / "tools" / "make_prw.py", tmp_path / "PRW"], check=True, capture_output=True, text=True
    )
    records = load_prw(tmp_path / "PRW", "train")
    assert len(records) == 10
    shares, contrasts = [], []
    for record in records[::2]:
        boxes = script.person_boxes(record)
        gradient = gradients(cv2.imread(record["file_name"]))
        for box, mask in zip(boxes, script.grabcut_provider(record, boxes), strict=True):
            limited = limit_to_box(mask, box)
            window = box_window(box, *mask.shape)
            prior = script.grabcut_prior(box, *mask.shape) & 1
            shares.append(limited[window].mean())
            contrasts.append(gradient[window][outline(limited[window])].mean())
            contrasts[-1] /= gradient[window][outline(prior[window])].mean()
    assert len(shares) > 10
    assert 0.3 < min(shares) and max(shares) < 0.85  # a standing person fills about half of its box
    # The outlines lie on edges of the picture, which the ellipses that GrabCut starts from do not.
    assert min(contrasts) > 1.1 and np.median(contrasts) > 1.7


def gradients(image):
    smooth = cv2.GaussianBlur(image, (0, 0), 1.5).astype(np.float32)
    return np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)).max(axis=-1)


def outline(mask):
    mask, kernel = mask.astype(np.uint8), np.ones((3, 3), np.uint8)
    return (cv2.dilate(mask, kernel) - cv2.erode(mask, kernel)).astype(bool)


def test_an_interrupted_run_goes_on_where_it_stopped(script, records, tmp_path, monkeypatch, capsys):
    whole, out = tmp_path / "whole.json", tmp_path / "out.json"
    assert run(script, "--out", whole) == 0
    done = []

    def interrupted(record, boxes):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(record["image_id"])
        return script.grabcut_provider(record, boxes)

    monkeypatch.setattr(script, "make_provider", lambda args: interrupted)
    assert run(script, "--out", out) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not out.exists() and len(MaskStore.load(script.part_file(out))) == 4
    rest = []

    def going_on(record, boxes):
        rest.append(record["image_id"])
        return script.grabcut_provider(record, boxes)

    monkeypatch.setattr(script, "make_provider", lambda args: going_on)
    assert run(script, "--out", out) == 0
    assert done + rest == [f"f{i}.png" for i in range(4)]
    assert not script.part_file(out).exists()
    assert out.read_bytes() == whole.read_bytes()


def test_the_part_is_kept_while_running(script, records, tmp_path, monkeypatch):
    out, seen = tmp_path / "out.json", []

    def provider(record, boxes):
        part = script.part_file(out)
        seen.append(len(MaskStore.load(part)) if part.exists() else 0)
        return [np.ones((HEIGHT, WIDTH), bool) for _ in boxes]

    monkeypatch.setattr(script, "SAVE_EVERY", 2)
    monkeypatch.setattr(script, "make_provider", lambda args: provider)
    assert run(script, "--out", out) == 0
    assert seen == [0, 0, 4, 4]


def test_limited_runs_are_continued_and_changed_boxes_done_anew(script, records, tmp_path, monkeypatch):
    out, seen = tmp_path / "out.json", []

    def provider(record, boxes):
        seen.append(record["image_id"])
        return [None, np.ones((HEIGHT, WIDTH), bool)]

    monkeypatch.setattr(script, "make_provider", lambda args: provider)
    run(script, "--out", out, "--limit", 1)
    run(script, "--out", out, "--limit", 3)
    assert seen == ["f0.png", "f1.png", "f2.png"]  # a person for whom there is no mask is not tried again
    records[1]["annotations"][0]["bbox"][0] += 5
    run(script, "--out", out)
    assert seen[3:] == ["f1.png", "f3.png"]
    store = MaskStore.load(out)
    assert store.has("f1.png", records[1]["annotations"][0]["bbox"])
    limited = mask_util.decode(store.get("f3.png", BOXES[1])).astype(bool)
    assert limited.sum() == 35 * 95 and limited[20:115, 90:125].all()


def test_damaged_images_are_named_and_left_for_later(script, records, tmp_path, capsys):
    file = Path(records[1]["file_name"])
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    out = tmp_path / "out.json"
    assert run(script, "--out", out) == 0
    captured = capsys.readouterr()
    assert "6 masks for 8 persons, 1 images unreadable" in captured.out and f"skipped: {file}" in captured.err
    file.write_bytes(content)
    assert run(script, "--out", out) == 0
    assert "8 masks for 8 persons, 0 images unreadable" in capsys.readouterr().out


def test_mistakes_end_in_one_line(script, records, tmp_path, capsys):
    out = tmp_path / "out.json"
    MaskStore("toy_train", "mask_rcnn").save(out)
    cases = [
        (["--out", out], "holds masks of toy_train by mask_rcnn, not of toy_train by grabcut"),
        (["--dataset", "nowhere"], "dataset nowhere is not registered"),
        (["--provider", "schp", "--parsing-dir", tmp_path / "none"], "none is not a folder"),
        (["--provider", "mask_rcnn", "--weights", tmp_path / "w.pkl"], "w.pkl does not exist"),
        (["--config-file", tmp_path / "none.yaml"], "none.yaml does not exist"),
    ]
    for arguments, message in cases:
        assert run(script, *arguments) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and error.startswith("error: ") and "\n" not in error
    for arguments in (["--provider", "schp"], ["--limit", 0], ["--provider", "magic"]):
        with pytest.raises(SystemExit):
            run(script, *arguments)


def test_own_data_sets_come_from_a_config(script, monkeypatch):
    registered = []
    monkeypatch.setattr(script, "register_custom", registered.extend)
    monkeypatch.setattr(script, "merge_file_and_options", lambda cfg, file, options: cfg.DATASETS.CUSTOM.append(file))
    script.register_own("mine.yaml")
    assert registered == ["mine.yaml"]


def write_palette(path, classes):
    image = Image.fromarray(classes.astype(np.uint8), mode="P")
    image.putpalette([v for i in range(256) for v in (i, 255 - i, 7)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def parse(script, records, folder, out):
    assert run(script, "--provider", "schp", "--parsing-dir", folder, "--out", out) == 0
    return MaskStore.load(out)


def test_parsing_of_frames_and_of_persons(script, records, tmp_path):
    folder, out = tmp_path / "parsing", tmp_path / "out.json"
    both = (person(BOXES[0]) * 5 + person(BOXES[1]) * 17).astype(np.uint8)
    write_palette(folder / "f0.png", both)
    half = np.zeros((50, 20), np.uint8)
    half[:25] = 3
    write_palette(folder / "f1_1.png", half)  # the second person of f1, upper half, at another size
    store = parse(script, records, folder, out)
    assert len(store) == 3
    for box in BOXES:
        assert np.array_equal(mask_util.decode(store.get("f0.png", box)).astype(bool), person(box))
    assert store.get("f1.png", BOXES[0]) is None
    upper = mask_util.decode(store.get("f1.png", BOXES[1])).astype(bool)
    assert upper[20:67, 90:125].all() and upper.sum() in (47 * 35, 48 * 35)
    # PNGs that come later are found, and a person's own parsing goes before the frame's.
    write_palette(folder / "f2.png", both)
    write_palette(folder / "f2_0.png", half)
    store = parse(script, records, folder, out)
    assert len(store) == 5
    assert np.array_equal(mask_util.decode(store.get("f2.png", BOXES[1])).astype(bool), person(BOXES[1]))
    assert mask_util.decode(store.get("f2.png", BOXES[0])).sum() == 50 * 40


def test_parsing_files_are_found_by_image_id(script, tmp_path):
    ones = np.ones((HEIGHT, WIDTH), np.uint8)
    for image_id, file in [("a/b.c.jpg", "a/b.c.png"), ("clip.avi#frame=7", "clip.avi#frame=7.png")]:
        write_palette(tmp_path / file, ones)
        record = {"image_id": image_id, "height": HEIGHT, "width": WIDTH}
        assert script.ParsingProvider(tmp_path)(record, np.array(BOXES))[0].all()


def test_bad_parsing_files_are_named(script, records, tmp_path):
    folder = tmp_path / "parsing"
    write_palette(folder / "f2.png", np.ones((9, 9)))
    (file := folder / "f0_0.png").write_bytes(b"no png")
    Image.new("RGB", (9, 9)).save(folder / "f1_0.png")
    provider = script.ParsingProvider(folder)
    messages = [f"{file}: not a readable PNG", "f1_0.png: a RGB image", "f2.png: height x width is"]
    for record, message in zip(records[:3], messages, strict=True):
        with pytest.raises(DatasetError, match=message):
            provider(record, np.array(BOXES))


def test_the_mask_rcnn_config_is_that_of_the_model_zoo(script):
    folder = Path(detectron2.__file__).parent / "model_zoo" / "configs"
    if not folder.is_dir():
        pytest.skip("this Detectron2 comes without its model zoo's configs")
    zoo = get_cfg()
    zoo.merge_from_file(str(folder / "COCO-InstanceSegmentation" / "mask_rcnn_R_50_FPN_3x.yaml"))
    ours = script.mask_rcnn_config()
    for cfg in (zoo, ours):
        cfg.MODEL.WEIGHTS, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = "", 0.0
        cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 0  # of training
    assert ours.MODEL.dump() == zoo.MODEL.dump()
    assert ours.INPUT.FORMAT == zoo.INPUT.FORMAT == "BGR"


def test_a_failed_download_says_what_to_fetch(script, monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(script.PathManager, "get_local_path", fail)
    with pytest.raises(DatasetError, match=r"no route to host.*https://.*/137849600/model_final_f10217.pkl.*--weights"):
        script.find_weights(None)


@pytest.fixture
def small_mask_rcnn(script, tmp_path):
    """The architecture with a small backbone and random weights that it has saved itself."""
    cfg = script.mask_rcnn_config()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 18, 64, 64
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16, 16
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 160, 300
    torch.manual_seed(0)
    weights = tmp_path / "model.pth"
    torch.save({"model": script.build_model(cfg).state_dict()}, weights)
    cfg.MODEL.WEIGHTS = str(weights)
    return cfg


def test_mask_rcnn_asks_its_mask_head_about_boxes_without_a_detection(script, records, small_mask_rcnn):
    provider = script.MaskRCNNProvider(small_mask_rcnn)
    provider.model.roi_heads.mask_head.predictor.bias.data.fill_(9.0)  # everything is foreground
    masks = provider(records[0], np.array(BOXES))
    for mask, (x0, y0, x1, y1) in zip(masks, np.array(BOXES, dtype=int), strict=True):
        window = np.zeros((HEIGHT, WIDTH), bool)
        window[y0:y1, x0:x1] = True
        assert mask.dtype == bool and iou(mask, window) > 0.9
    assert provider(records[0], np.zeros((0, 4))) == []


def test_mask_rcnn_refuses_weights_of_something_else(script, small_mask_rcnn):
    file = Path(small_mask_rcnn.MODEL.WEIGHTS)
    state = torch.load(file)
    del state["model"]["roi_heads.mask_head.predictor.bias"]
    torch.save(state, file)
    with pytest.raises(DatasetError, match=r"lacks roi_heads.mask_head.predictor.bias \(1 in all\)"):
        script.MaskRCNNProvider(small_mask_rcnn)
    file.write_bytes(b"<html>not found</html>")
    with pytest.raises(DatasetError, match="model.pth: cannot be read as weights"):
        script.MaskRCNNProvider(small_mask_rcnn)


def test_mask_rcnn_prefers_the_matching_detection(script, records, small_mask_rcnn, monkeypatch):
    provider = script.MaskRCNNProvider(small_mask_rcnn)
    shifted = np.array([[95.0, 25, 125, 115], [0, 0, 30, 30], [91, 21, 124, 114], [20, 10, 60, 110]])

    def detect(images, features, proposals, targets):
        found = script.Instances(images.image_sizes[0])
        scale = images.image_sizes[0][0] / HEIGHT
        found.pred_boxes = script.Boxes(torch.as_tensor(shifted * scale, dtype=torch.float32))
        found.pred_classes = torch.tensor([0, 0, 0, 2])  # the last is a car
        found.scores = torch.ones(4)
        found.pred_masks = torch.ones(4, 1, 28, 28)
        found.pred_masks[:, :, 14:] = 0  # upper halves
        return [found], {}

    monkeypatch.setattr(provider.model.roi_heads, "forward", detect)
    provider.model.roi_heads.mask_head.predictor.bias.data.fill_(9.0)
    first, second = provider(records[0], np.array(BOXES))
    assert first[100, 40]  # the whole box: its only overlap is not a person
    assert second[40, 107] and not second[100, 107]  # the upper half, from the third detection


def test_boxes_are_matched_one_to_one(script):
    annotated = np.array([[0.0, 0, 10, 20], [4, 0, 14, 20], [50, 50, 60, 70]])
    detected = np.array([[3.0, 0, 13, 20], [0, 0, 10, 19], [53, 50, 68, 70], [4, 0, 9, 20]])
    assert sorted(script.match_boxes(annotated, detected)) == [(0, 1), (1, 0)]
    assert script.match_boxes(annotated, detected[:0]) == []


def test_a_place_that_cannot_be_written_is_named_before_the_work(script, records, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "grabcut", lambda *_: pytest.fail("worked first"))
    (tmp_path / "taken").write_text("a file")
    assert run(script, "--out", tmp_path / "taken" / "masks.json") == 2
    error = capsys.readouterr().err.strip()
    assert "masks.json cannot be written" in error and "--out" in error and "\n" not in error


def test_a_failure_at_the_first_image_leaves_no_file(script, records, tmp_path, capsys):
    (tmp_path / "parsing").mkdir()
    (tmp_path / "parsing" / "f0.png").write_text("no image")
    out = tmp_path / "out" / "masks.json"
    arguments = ["--dataset", "toy_train", "--provider", "schp", "--parsing-dir", str(tmp_path / "parsing")]
    assert script.main([*arguments, "--out", str(out)]) == 2
    assert "f0.png: not a readable PNG" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []


def test_a_device_that_is_not_there_is_named(script, records, tmp_path, capsys):
    (tmp_path / "w.pkl").write_text("x")
    arguments = ["--dataset", "toy_train", "--provider", "mask_rcnn", "--weights", str(tmp_path / "w.pkl")]
    assert script.main([*arguments, "--device", "nonsense"]) == 2
    error = capsys.readouterr().err.strip()
    assert "--device nonsense cannot be used" in error and "\n" not in error


def test_a_disk_that_fills_up_is_named_in_one_line(script, records, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("person_search.io.os.replace", full)
    assert run(script) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "cannot write" in error and "No space left on device" in error


def test_a_folder_with_a_parsing_of_none_of_the_frames_is_refused(script, records, tmp_path, capsys):
    folder = tmp_path / "parsing"
    folder.mkdir()
    write_palette(folder / "of_another_set.png", np.ones((4, 4), np.uint8))
    out = tmp_path / "out.json"
    assert run(script, "--provider", "schp", "--parsing-dir", folder, "--out", out) == 2
    expected = folder / Path(records[0]["image_id"]).with_suffix(".png")
    assert f"has no parsing of these frames: expected {expected} or" in capsys.readouterr().err
    assert not out.exists()
