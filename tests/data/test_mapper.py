"""What the mapper hands to the model, against brute-force recomputation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, Instances
from person_search.config import add_ssl_config
from person_search.data.mapper import PersonSearchMapper, UnreadableImageError, source_pixels, transform_masks
from person_search.data.masks import encode_rle
from person_search.errors import ConfigError, DatasetError
from PIL import Image

HEIGHT, WIDTH = 90, 160
BOXES = [(10.0, 12.0, 40.0, 80.0), (100.5, 3.25, 131.0, 77.5), (150.0, 50.0, 160.0, 90.0)]


def ellipse(box):
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    centre, half = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), ((box[2] - box[0]) / 2, (box[3] - box[1]) / 2)
    return ((x - centre[0]) / half[0]) ** 2 + ((y - centre[1]) / half[1]) ** 2 < 1


def write_image(path):
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def record(tmp_path):
    write_image(tmp_path / "a.png")
    annotations = [
        {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0, "person_id": 900 + i,
         "instance_index": 70 + i, "segmentation": encode_rle(ellipse(box))}
        for i, box in enumerate(BOXES)
    ]  # fmt: skip
    return {
        "file_name": str(tmp_path / "a.png"), "image_id": "a.png", "height": HEIGHT, "width": WIDTH, "camera_id": 4,
        "annotations": annotations,
    }  # fmt: skip


def mapper(is_train=True, flip=0.0, size=45, **options):
    augmentations = [T.ResizeShortestEdge([size], 2000, "choice"), T.RandomFlip(prob=flip)]
    options = {"augmentations": augmentations, "image_format": "RGB", "use_masks": True, **options}
    return PersonSearchMapper(is_train, **options)


def contents(value):
    """Every key and leaf in a mapped dict."""
    if isinstance(value, dict):
        return [item for key, inner in value.items() for item in [key, *contents(inner)]]
    if isinstance(value, Instances):
        return contents(value.get_fields())
    if isinstance(value, (list, tuple)):
        return [item for inner in value for item in contents(inner)]
    return [value]


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_image_and_boxes(record, tmp_path, flip, image_format):
    output = mapper(flip=flip, image_format=image_format)(record)
    expected = np.asarray(Image.open(record["file_name"]).resize((80, 45), Image.BILINEAR))
    boxes = np.array(BOXES) / 2
    if flip:
        expected = expected[:, ::-1]
        boxes = np.stack([80 - boxes[:, 2], boxes[:, 1], 80 - boxes[:, 0], boxes[:, 3]], axis=1)
    if image_format == "BGR":
        expected = expected[:, :, ::-1]
    assert output["image"].dtype == torch.uint8
    assert np.array_equal(output["image"].permute(1, 2, 0).numpy(), expected)
    instances = output["instances"]
    assert instances.image_size == (45, 80)
    assert instances.gt_boxes.tensor.dtype == torch.float32
    np.testing.assert_allclose(instances.gt_boxes.tensor.numpy(), boxes, atol=1e-5)
    assert instances.gt_classes.tolist() == [0, 0, 0] and instances.gt_classes.dtype == torch.int64
    assert instances.gt_instance_index.tolist() == [70, 71, 72]
    assert instances.gt_instance_index.dtype == torch.int64
    assert (output["height"], output["width"]) == (HEIGHT, WIDTH)
    assert (output["image_id"], output["file_name"], output["camera_id"]) == ("a.png", record["file_name"], 4)


@pytest.mark.parametrize("with_instances", [None, True])
@pytest.mark.parametrize("is_train", [True, False])
def test_identities_never_get_through(record, is_train, with_instances):
    output = mapper(is_train, with_instances=with_instances, given_boxes={"a.png": np.array(BOXES)})(record)
    found = contents(output)
    assert "person_id" not in found
    numbers = torch.cat([v.flatten().double() for v in found if isinstance(v, torch.Tensor) and v.dim() < 3])
    assert not {900.0, 901.0, 902.0} & set(numbers.tolist() + [v for v in found if isinstance(v, int)])
    # The output is the same whatever the identities are.
    for annotation in record["annotations"]:
        annotation["person_id"] = -1
    again = contents(mapper(is_train, with_instances=with_instances, given_boxes={"a.png": np.array(BOXES)})(record))
    assert len(again) == len(found)
    for one, other in zip(found, again, strict=True):
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other)
        elif hasattr(one, "tensor"):
            assert torch.equal(one.tensor, other.tensor)
        else:
            assert one == other


def brute_force_mask(mask, box, height, width, new_height, new_width, flip):
    """The mask pixel by pixel: the source pixel in which the target's centre lies; nothing outside the box."""
    result = np.zeros((new_height, new_width), dtype=bool)
    for y in range(new_height):
        for x in range(new_width):
            if y + 1 > box[1] and y < box[3] and x + 1 > box[0] and x < box[2]:
                straight = new_width - 1 - x if flip else x
                source = (2 * y + 1) * height // (2 * new_height), (2 * straight + 1) * width // (2 * new_width)
                result[y, x] = mask[source]
    return result


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("size", [45, 61, 130])
def test_masks_follow_the_image(record, flip, size):
    instances = mapper(flip=flip, size=size)(record)["instances"]
    assert isinstance(instances.gt_masks, BitMasks) and instances.gt_masks.tensor.dtype == torch.bool
    height, width = instances.image_size
    for i, box in enumerate(BOXES):
        expected = brute_force_mask(
            ellipse(box), instances.gt_boxes.tensor[i].tolist(), HEIGHT, WIDTH, height, width, flip
        )
        assert expected.any()
        assert np.array_equal(instances.gt_masks.tensor[i].numpy(), expected)


@pytest.mark.parametrize("size", [45, 61, 90, 130])
def test_masks_agree_with_detectron2_transforms(record, size):
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    transforms = T.AugmentationList([T.ResizeShortestEdge([size], 2000, "choice"), T.RandomFlip(prob=1.0)])(
        T.AugInput(image)
    )
    new_size = transforms.apply_image(image).shape[:2]
    boxes = transforms.apply_box(np.array(BOXES))
    segmentations = [a["segmentation"] for a in record["annotations"]]
    masks = transform_masks(segmentations, boxes, transforms, (HEIGHT, WIDTH), new_size)
    for mask, box in zip(masks, BOXES, strict=True):
        whole = transforms.apply_segmentation(ellipse(box).astype(np.uint8)).astype(bool)
        # Pillow adds up the sampling positions, so that one on a pixel's edge may fall to either side.
        assert (mask ^ whole).mean() < 0.002


def test_a_transform_that_turns_the_image_takes_the_slow_way(record):
    rotation = T.RotationTransform(HEIGHT, WIDTH, 30, expand=False)
    transforms = T.TransformList([rotation])
    assert source_pixels(transforms, (HEIGHT, WIDTH)) is None
    output = mapper(augmentations=[rotation])(record)["instances"]
    whole = rotation.apply_segmentation(ellipse(BOXES[0]).astype(np.uint8))
    x0, y0, x1, y1 = output.gt_boxes.tensor[0].tolist()
    mask = output.gt_masks.tensor[0].numpy()
    window = np.zeros_like(mask)
    window[int(np.floor(y0)) : int(np.ceil(y1)), int(np.floor(x0)) : int(np.ceil(x1))] = True
    assert mask.any() and np.array_equal(mask, whole.astype(bool) & window)


def test_crops_and_vertical_flips_move_rows_and_columns():
    transforms = [T.CropTransform(20, 10, 100, 60), T.VFlipTransform(60), T.ResizeTransform(60, 100, 30, 50)]
    rows, columns = source_pixels(T.TransformList(transforms), (HEIGHT, WIDTH))
    whole = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    expected = whole[10:70, 20:120][::-1][1::2, 1::2]
    assert np.array_equal(whole[rows][:, columns], expected)


def test_a_person_without_a_mask_gets_the_whole_box(record):
    del record["annotations"][1]["segmentation"]
    record["annotations"][2]["segmentation"] = encode_rle(np.zeros((HEIGHT, WIDTH), bool))
    instances = mapper()(record)["instances"]
    for i in (1, 2):
        x0, y0, x1, y1 = instances.gt_boxes.tensor[i].tolist()
        expected = np.zeros((45, 80), bool)
        expected[int(np.floor(y0)) : int(np.ceil(y1)), int(np.floor(x0)) : int(np.ceil(x1))] = True
        assert np.array_equal(instances.gt_masks.tensor[i].numpy(), expected)
    assert not torch.equal(instances.gt_masks.tensor[0], instances.gt_masks.tensor[1])


def test_masks_are_left_out_where_none_are_wanted_or_known(record):
    assert not mapper(use_masks=False)(record)["instances"].has("gt_masks")
    for annotation in record["annotations"]:
        del annotation["segmentation"]
    assert not mapper()(record)["instances"].has("gt_masks")


def test_an_image_without_persons_has_empty_fields(record):
    filled = mapper()(record)["instances"]
    empty = mapper()({**record, "annotations": []})["instances"]
    assert len(empty) == 0 and empty.image_size == filled.image_size
    assert set(empty.get_fields()) == set(filled.get_fields())
    for name, value in empty.get_fields().items():
        one, other = (getattr(v, "tensor", v) for v in (value, filled.get(name)))
        assert one.dtype == other.dtype and one.shape[1:] == other.shape[1:]


def test_crowds_and_boxes_that_leave_the_image_are_dropped(record):
    record["annotations"][0]["iscrowd"] = 1
    cropped = mapper(augmentations=[T.CropTransform(0, 0, 140, HEIGHT)])(record)["instances"]
    assert cropped.gt_instance_index.tolist() == [71]
    assert len(cropped.gt_masks) == len(cropped.gt_boxes) == 1


def test_boxes_are_clipped_and_other_box_modes_understood(record):
    record["annotations"][0].update(bbox=[-8, -6, 20, 30], bbox_mode=BoxMode.XYWH_ABS)
    boxes = mapper()(record)["instances"].gt_boxes.tensor
    np.testing.assert_allclose(boxes[0].numpy(), [0, 0, 6, 12])


def test_the_record_stays_as_it_was(record):
    before = repr(record)
    mapper()(record)
    assert repr(record) == before


def test_evaluation_gives_boxes_in_the_resized_image_in_order(record):
    boxes = np.array([[150, 50, 170, 95], [10, 12, 40, 80]], dtype=np.float64)
    output = mapper(is_train=False, size=180, given_boxes={"a.png": boxes})(record)
    assert "instances" not in output
    assert output["given_boxes"].dtype == torch.float32
    np.testing.assert_allclose(output["given_boxes"].numpy(), boxes * 2)
    other = mapper(is_train=False, given_boxes={"b.png": boxes})(record)["given_boxes"]
    assert other.shape == (0, 4) and other.dtype == torch.float32
    assert "given_boxes" not in mapper(is_train=False)(record)
    with pytest.raises(DatasetError, match="a.png: a given box"):
        mapper(is_train=False, given_boxes={"a.png": boxes * np.nan})(record)


def project_config(**options):
    cfg = get_cfg()
    add_ssl_config(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (45,), 200
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 180, 200
    cfg.merge_from_list([item for pair in options.items() for item in pair])
    return cfg


def test_the_config_sets_sizes_flip_and_format(record):
    cfg = project_config()
    flips = set()
    straight = np.asarray(Image.open(record["file_name"]).resize((80, 45), Image.BILINEAR))
    for seed in range(12):
        np.random.seed(seed)
        image = PersonSearchMapper(cfg, True)(record)["image"].permute(1, 2, 0).numpy()
        flips.add(bool(np.array_equal(image, straight[:, ::-1])))
        assert np.array_equal(image, straight) or np.array_equal(image, straight[:, ::-1])
    assert flips == {True, False}
    test = PersonSearchMapper(cfg, False)(record)
    assert test["image"].shape == (3, 113, 200) and "instances" not in test  # MAX_SIZE_TEST limits
    bank = PersonSearchMapper(cfg, False, with_instances=True)(record)
    assert torch.equal(bank["image"], test["image"]) and bank["instances"].has("gt_masks")
    np.testing.assert_allclose(bank["instances"].gt_boxes.tensor[0].numpy(), np.array(BOXES[0]) * 1.25, rtol=6e-3)


def test_the_config_switches_flip_crop_and_masks(record):
    cfg = project_config(**{"INPUT.RANDOM_FLIP": "none"})
    images = [PersonSearchMapper(cfg, True)(record)["image"] for _ in range(8)]
    assert all(torch.equal(image, images[0]) for image in images)
    cfg = project_config(**{"INPUT.CROP.ENABLED": True, "INPUT.CROP.TYPE": "absolute", "INPUT.CROP.SIZE": [90, 90]})
    assert PersonSearchMapper(cfg, True)(record)["image"].shape == (3, 45, 45)
    assert PersonSearchMapper(cfg, False)(record)["image"].shape == (3, 113, 200)
    for key in ("SSL.EXEMPLAR.ENABLED", "SSL.EXEMPLAR.MASK_BACKGROUND"):
        assert not PersonSearchMapper(project_config(**{key: False}), True)(record)["instances"].has("gt_masks")


def test_bad_input_is_named(record, tmp_path):
    with pytest.raises(ConfigError, match="INPUT.FORMAT is 'YUV-BT.601'"):
        mapper(image_format="YUV-BT.601")
    with pytest.raises(UnreadableImageError, match="gone.png"):
        mapper()({**record, "file_name": str(tmp_path / "gone.png")})
    with pytest.raises(DatasetError, match="160 x 90 pixels, but its annotations are for 80 x 45") as caught:
        mapper()({**record, "height": 45, "width": 80})
    assert not isinstance(caught.value, UnreadableImageError)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (encode_rle(np.ones((45, 80), bool)), r"a.png: segmentation is \[45, 80\], expected .* size \[90, 160\]"),
        ([[1, 2, 3, 4, 5, 6]], "a.png: segmentation is list"),
        (
            {"size": [90, 160], "counts": "12"},
            "a.png: segmentation is damaged.*; fix its annotation, or make the masks again",
        ),
    ],
)
def test_bad_masks_are_named(record, segmentation, message):
    record["annotations"][1]["segmentation"] = segmentation
    with pytest.raises(DatasetError, match=message):
        mapper()(record)
