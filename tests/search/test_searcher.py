"""The searcher: the evaluator's outputs for any kind of picture, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from person_search.data.loader import build_test_loader
from person_search.data.mapper import PersonSearchMapper
from person_search.errors import CheckpointError, ConfigError, DatasetError
from person_search.evaluation.features import extract
from person_search.search.searcher import PersonSearcher, PictureError
from PIL import Image


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, textured) -> list[Path]:
    """Three pictures, two of one size, as PNG files."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number, size in enumerate([(160, 200), (160, 200), (220, 150)]):
        paths.append(folder / f"{number}.png")
        Image.fromarray(textured(number, *size)).save(paths[-1])
    return paths


def test_it_returns_what_the_evaluator_evaluates(checkpoint, tiny_cfg, pictures):
    boxes = {path.name: np.array([[20.5, 30, 70, 140], [90, 10, 130, 100.25]]) for path in pictures}
    records = []
    for path in pictures:
        width, height = Image.open(path).size
        records.append({"image_id": path.name, "file_name": str(path), "height": height, "width": width})
    searcher = PersonSearcher(None, checkpoint)
    evaluated = {}
    loader = build_test_loader(records, PersonSearchMapper(tiny_cfg, False, given_boxes=boxes))
    extract(searcher._model, loader, evaluated.update, "pictures", len(records))
    assert sum(len(output.score) for output in evaluated.values()) >= 6
    for path, found in zip(pictures, searcher.detect_batch(pictures), strict=True):
        expected = evaluated[path.name]
        np.testing.assert_allclose(found.boxes, expected.box, atol=1e-3)  # pixels
        np.testing.assert_allclose(found.scores, expected.score, atol=1e-5)
        np.testing.assert_allclose(found.embeddings, expected.feature, atol=1e-5)
        np.testing.assert_allclose(searcher.embed(path, boxes[path.name]), expected.given_feature, atol=1e-5)


def test_a_file_an_array_and_a_pil_image_are_the_same_picture(searcher, pictures):
    array = np.array(Image.open(pictures[2]))
    found = [searcher.detect(kind) for kind in (pictures[2], str(pictures[2]), array, Image.open(pictures[2]))]
    assert len(found[0])
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].boxes, other.boxes)
        np.testing.assert_array_equal(found[0].embeddings, other.embeddings)


def test_the_order_of_the_colors_is_red_green_blue(searcher, pictures):
    array = np.array(Image.open(pictures[0]))
    box = np.array([[10.0, 10, 60, 120]])
    right, swapped = searcher.embed(array, box), searcher.embed(array[:, :, ::-1], box)
    np.testing.assert_allclose(right, searcher.embed(pictures[0], box), atol=1e-6)
    assert np.abs(right - swapped).max() > 1e-3


def test_a_model_that_takes_bgr_is_given_bgr(checkpoint, tiny_cfg, pictures):
    cfg = tiny_cfg.clone()
    cfg.defrost()
    cfg.INPUT.FORMAT = "BGR"
    picture = np.array(Image.open(pictures[0]))
    box = np.array([[10.0, 10, 60, 120]])
    bgr = PersonSearcher(cfg, checkpoint).embed(picture, box)
    np.testing.assert_allclose(
        bgr, PersonSearcher(None, checkpoint).embed(picture[:, :, ::-1], box), atol=1e-6
    )  # fmt: skip


def test_a_batch_gives_what_each_picture_gives_alone(searcher, pictures):
    for together, path in zip(searcher.detect_batch(pictures), pictures, strict=True):
        alone = searcher.detect(path)
        np.testing.assert_allclose(together.boxes, alone.boxes, atol=1e-3)
        np.testing.assert_allclose(together.embeddings, alone.embeddings, atol=1e-5)
    assert searcher.detect_batch([]) == []


def test_pictures_are_turned_upright_as_exif_says(searcher, pictures, tmp_path):
    upright = Image.open(pictures[2])
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    found = searcher.detect(tmp_path / "turned.png")
    assert found.image_size == (upright.height, upright.width)
    np.testing.assert_array_equal(found.boxes, searcher.detect(pictures[2]).boxes)
    np.testing.assert_array_equal(found.boxes, searcher.detect(Image.open(tmp_path / "turned.png")).boxes)


def test_embeddings_have_unit_length_and_the_order_of_the_boxes(searcher, pictures):
    boxes = np.array([[20.0, 30, 70, 140], [90, 10, 130, 100], [-5, -5, 40, 90]])
    embeddings = searcher.embed(pictures[0], boxes)
    assert embeddings.dtype == np.float32 and embeddings.shape == (3, searcher.dimension)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(searcher.embed(pictures[0], boxes[::-1]), embeddings[::-1], atol=1e-6)
    assert searcher.embed(pictures[0], np.zeros((0, 4))).shape == (0, searcher.dimension)


@pytest.mark.parametrize(
    ("picture", "named"),
    [
        (np.zeros((20, 30), np.uint8), r"\(20, 30\)"),
        (np.zeros((20, 30, 4), np.uint8), r"\(20, 30, 4\)"),
        (np.zeros((20, 30, 3), np.float32), "float32"),
        (np.zeros((0, 30, 3), np.uint8), r"\(0, 30, 3\)"),
        (torch.zeros(3, 20, 30), "torch.Tensor"),
        (b"bytes", "bytes"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(searcher, picture, named):
    with pytest.raises(PictureError, match=named):
        searcher.detect(picture)


@pytest.mark.parametrize(
    "boxes", [np.zeros(4), np.zeros((2, 3)), [[0, 0, np.nan, 9]], [[50, 10, 40, 90]], [[500, 10, 540, 90]], ["box"]]
)
def test_boxes_that_show_nothing_are_refused(searcher, pictures, boxes):
    with pytest.raises(PictureError, match="box"):
        searcher.embed(pictures[0], boxes)


def test_a_file_that_is_no_image_is_named(searcher, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    for path in (tmp_path / "text.jpg", tmp_path / "missing.jpg"):
        with pytest.raises(DatasetError, match=path.name):
            searcher.detect(path)


def test_supervision_gets_boxes_scores_and_embeddings(searcher, pictures):
    found = searcher.detect(pictures[0])
    converted = found.to_supervision()
    assert len(converted) == len(found) > 0
    np.testing.assert_array_equal(converted.xyxy, found.boxes)
    np.testing.assert_array_equal(converted.confidence, found.scores)
    np.testing.assert_array_equal(converted.data["embedding"], found.embeddings)


def test_the_same_weights_in_another_file_are_the_same_model(checkpoint, tiny_cfg, tmp_path, searcher):
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "iteration": 7}, tmp_path / "copy.pth")
    assert PersonSearcher(None, tmp_path / "copy.pth").info == searcher.info
    content["model"] = {k: v + 1e-3 if v.is_floating_point() else v for k, v in content["model"].items()}
    torch.save(content, tmp_path / "other.pth")
    assert PersonSearcher(None, tmp_path / "other.pth").info.weights_digest != searcher.info.weights_digest


def test_a_configuration_may_be_a_file_or_lie_beside_the_weights(checkpoint, tiny_cfg, tmp_path, searcher, pictures):
    content = torch.load(checkpoint, weights_only=True)
    del content["config"]
    bare = tmp_path / "bare.pth"
    torch.save(content, bare)
    with pytest.raises(CheckpointError, match="--config-file"):
        PersonSearcher(None, bare)
    (tmp_path / "given.yaml").write_text(tiny_cfg.dump())
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    for config in (tmp_path / "given.yaml", tiny_cfg, None):
        assert PersonSearcher(config, bare).info == searcher.info


def test_a_checkpoint_runs_no_code(tiny_cfg, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    marker = tmp_path / "ran"
    content["config"] = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{marker}']]"
    torch.save(content, tmp_path / "tagged.pth")
    with pytest.raises(ConfigError, match="tagged.pth"):
        PersonSearcher(None, tmp_path / "tagged.pth")

    class Evil:
        def __reduce__(self):
            return (Path.touch, (marker,))

    torch.save({**content, "config": tiny_cfg.dump(), "extra": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="evil.pth"):
        PersonSearcher(None, tmp_path / "evil.pth")
    assert not marker.exists()


def test_weights_that_are_missing_or_damaged_are_named(tmp_path, tiny_cfg):
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04 cut off")
    for name in ("damaged.pth", "missing.pth"):
        with pytest.raises(CheckpointError, match=name):
            PersonSearcher(None, tmp_path / name)
        with pytest.raises(CheckpointError, match=name):
            PersonSearcher(tiny_cfg, tmp_path / name)


def test_an_unknown_device_is_named(checkpoint):
    with pytest.raises(ConfigError, match="abacus"):
        PersonSearcher(None, checkpoint, device="abacus")


def test_it_runs_on_any_device(checkpoint, device, pictures, searcher):
    found = PersonSearcher(None, checkpoint, device=device).detect(pictures[0])
    np.testing.assert_allclose(found.embeddings, searcher.detect(pictures[0]).embeddings, atol=1e-3)


def test_the_model_can_be_built_from_the_saved_configuration(checkpoint, tiny_cfg):
    assert isinstance(build_model(PersonSearcher(None, checkpoint).config), torch.nn.Module)
