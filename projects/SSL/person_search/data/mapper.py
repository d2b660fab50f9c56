"""Mapper from dataset records to the model's input: image, boxes, bank rows and foreground masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from PIL import Image

from ..errors import DatasetError
from ..values import check_value
from .images import read_image
from .masks import box_window, decode_columns


class InterpolatedResizeTransform(T.ResizeTransform):
    """Resizing of images to float32 by bilinear interpolation without anti-aliasing; masks and boxes as in the base."""

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resized image, (H, W, C) or (H, W) float32; the dtype is kept with interpolations other than bilinear."""
        if interp not in (None, Image.Resampling.BILINEAR):
            return super().apply_image(img, interp)
        return super().apply_image(
            img.astype(np.float32), Image.Resampling.BILINEAR
        )  # it takes uint8 to Pillow, float to torch


class InterpolatedResize(T.ResizeShortestEdge):
    """`ResizeShortestEdge` with torchvision's interpolation and sizes, which are rounded down."""

    @classmethod
    def like(cls, other: T.ResizeShortestEdge) -> InterpolatedResize:
        """Resizing with the lengths of another."""
        return cls(other.short_edge_length, other.max_size, "range" if other.is_range else "choice")

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Transform for an image (H, W, C); a shorter side of 0 keeps the size."""
        low, high = self.short_edge_length[0], self.short_edge_length[-1]
        shorter = np.random.randint(low, high + 1) if self.is_range else np.random.choice(self.short_edge_length)
        if shorter == 0:
            return T.NoOpTransform()
        height, width = image.shape[:2]
        scale = min(float(shorter) / min(height, width), float(self.max_size) / max(height, width))
        return InterpolatedResizeTransform(height, width, math.floor(height * scale), math.floor(width * scale))


MIN_BOX_SIDE = 1e-5  # pixels, as in Detectron2: smaller boxes lie outside a cropped image


class UnreadableImageError(DatasetError):
    """An image file is missing, damaged or cut short. Training skips the image, evaluation stops."""


class PersonSearchMapper:
    """Mapper for training, bank filling and evaluation.

    Maps a dataset record to a dict with
        image: tensor (3, H, W) from 0 to 255, resized (and flipped in training), channels in the order of
            `image_format`; uint8, or float32 if INPUT.RESIZE is "torchvision";
        height, width: size of the image before resizing;
        image_id, file_name, and camera_id if the record has it;
        instances (training and bank filling): Instances of size (H, W) with gt_boxes, gt_classes (int64, all 0),
            gt_instance_index (int64, rows of the memory bank) and, if masks are used and the record has any,
            gt_masks: BitMasks (P, H, W), zero outside the pixels touched by the box; for a person without a mask, all
            pixels of the box are set. Persons with empty boxes are dropped;
        given_boxes (evaluation, if boxes are given): float32 (R, 4), xyxy in the resized image, in the given order.
    Identities (`person_id`) are never passed on: training must not see them.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        use_masks: bool,
        with_instances: bool | None = None,
        given_boxes: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """
        Args:
            is_train: whether the augmentations are those of training.
            augmentations: Detectron2 augmentations, applied in order.
            image_format: "RGB" or "BGR".
            use_masks: whether to return `gt_masks`.
            with_instances: whether to return the ground truth; None for training only. Set with test augmentations to
                fill the memory banks.
            given_boxes: boxes to embed, (R, 4) xyxy in pixels of the original image, by image_id; other images have
                none.

        Raises:
            ConfigError: the image format is neither RGB nor BGR.
        """
        check_value("INPUT.FORMAT", image_format)
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_masks = use_masks
        self.with_instances = is_train if with_instances is None else with_instances
        self.given_boxes = given_boxes

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Constructor arguments from a config: Detectron2's keys of INPUT, and SSL.EXEMPLAR."""
        check_value("INPUT.RESIZE", cfg.INPUT.RESIZE)
        augmentations = detection_utils.build_augmentation(cfg, is_train)
        if cfg.INPUT.RESIZE == "torchvision":
            augmentations[0] = InterpolatedResize.like(augmentations[0])
        if is_train and cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_masks": cfg.SSL.EXEMPLAR.ENABLED and cfg.SSL.EXEMPLAR.MASK_BACKGROUND,
        }

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Input of the model for a record; see the class.

        Raises:
            UnreadableImageError: the image cannot be read.
            DatasetError: the image has another size than the record says, or an annotation is damaged.
        """
        image = read_frame(record, self.image_format)
        height, width = image.shape[:2]
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        resized = augmented.image
        output: dict[str, Any] = {key: record[key] for key in ("image_id", "file_name", "camera_id") if key in record}
        output["height"], output["width"] = height, width
        output["image"] = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        if self.with_instances:
            output["instances"] = self._instances(record, transforms, (height, width), resized.shape[:2])
        if self.given_boxes is not None:
            output["given_boxes"] = self._given_boxes(record["image_id"], transforms)
        return output

    def _instances(
        self, record: Mapping[str, Any], transforms: T.TransformList, frame: tuple[int, int], size: tuple[int, int]
    ) -> Instances:
        persons = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
        boxes = np.array(
            [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in persons], dtype=np.float64
        ).reshape(-1, 4)
        boxes = transforms.apply_box(boxes).clip(min=0, max=[size[1], size[0]] * 2).astype(np.float32)
        kept = ((boxes[:, 2:] - boxes[:, :2]) > MIN_BOX_SIDE).all(axis=1)
        boxes, persons = boxes[kept], [person for person, keep in zip(persons, kept, strict=True) if keep]

        instances = Instances(size)
        instances.gt_boxes = Boxes(torch.from_numpy(boxes))
        instances.gt_classes = torch.zeros(len(persons), dtype=torch.int64)
        instances.gt_instance_index = torch.tensor([a["instance_index"] for a in persons], dtype=torch.int64)
        if self.use_masks and (not persons or any("segmentation" in a for a in persons)):
            segmentations = [a.get("segmentation") for a in persons]
            try:
                masks = transform_masks(segmentations, boxes, transforms, frame, size)
            except DatasetError as error:
                raise DatasetError(
                    f"{record['image_id']}: {error}; fix its annotation, or make the masks again with prepare_masks.py"
                ) from error
            instances.gt_masks = BitMasks(torch.from_numpy(masks))
        return instances

    def _given_boxes(self, image_id: str, transforms: T.TransformList) -> torch.Tensor:
        boxes = np.asarray((self.given_boxes or {}).get(image_id, ()), dtype=np.float64).reshape(-1, 4)
        if not np.isfinite(boxes).all():
            raise DatasetError(f"{image_id}: a given box has a coordinate that is not a number")
        return torch.from_numpy(transforms.apply_box(boxes).astype(np.float32))


def read_frame(record: Mapping[str, Any], image_format: str) -> np.ndarray:
    """Image of a record.

    Args:
        record: dataset record.
        image_format: "RGB" or "BGR".

    Returns:
        uint8 (height, width, 3).

    Raises:
        UnreadableImageError: the image cannot be read.
        DatasetError: the image has another size than the record, so boxes would be wrong.
    """
    try:
        image = read_image(record["file_name"], image_format)
    except DatasetError as error:
        raise UnreadableImageError(str(error)) from error
    expected = (record["height"], record["width"])
    if image.shape[:2] != expected:
        raise DatasetError(
            f"{record['file_name']}: the image is {image.shape[1]} x {image.shape[0]} pixels, but its annotations are "
            f"for {expected[1]} x {expected[0]}; use the frames that were annotated"
        )
    return image


def transform_masks(
    segmentations: Sequence[Mapping[str, Any] | None],
    boxes: np.ndarray,
    transforms: T.TransformList,
    frame: tuple[int, int],
    size: tuple[int, int],
) -> np.ndarray:
    """Foreground masks after geometric transforms, computed only within the persons' boxes.

    Args:
        segmentations: P masks as COCO RLE over the original frame, or None.
        boxes: (P, 4) xyxy in the transformed image, inside it.
        transforms: transforms applied to the image.
        frame: (height, width) of the original frame.
        size: (height, width) of the transformed image.

    Returns:
        bool (P, *size), sampled by nearest neighbor; zero outside the pixels touched by the person's box. Without a
        mask, or with one that is empty within the box, all those pixels are set.

    Raises:
        DatasetError: a mask is damaged or has another size than the frame.
    """
    masks = np.zeros((len(segmentations), *size), dtype=bool)
    sources = source_pixels(transforms, frame)
    for mask, segmentation, box in zip(masks, segmentations, boxes, strict=True):
        touched = box_window(box, *size)
        window = mask[touched]
        if segmentation is not None:
            _check_size(segmentation, frame)
            if sources is not None:
                rows, columns = sources[0][touched[0]], sources[1][touched[1]]
                left = int(columns.min())
                window[:] = decode_columns(segmentation, left, int(columns.max()) + 1)[rows][:, columns - left]
            else:
                whole = decode_columns(segmentation, 0, frame[1]).astype(np.uint8)
                window[:] = transforms.apply_segmentation(whole)[touched]
        if not window.any():
            window[:] = True
    return masks


def source_pixels(transforms: T.TransformList, frame: tuple[int, int]) -> tuple[np.ndarray, np.ndarray] | None:
    """Original row and column that nearest-neighbor sampling takes for each row and column of the result.

    Args:
        transforms: transforms applied to the image.
        frame: (height, width) before the transforms.

    Returns:
        int64 (height after,) and (width after,); None if a transform is unknown or does not keep rows and columns
        separate.
    """
    rows, columns = np.arange(frame[0]), np.arange(frame[1])
    for transform in transforms.transforms:
        if isinstance(transform, T.ResizeTransform):
            rows = rows[_nearest(transform.h, transform.new_h)]
            columns = columns[_nearest(transform.w, transform.new_w)]
        elif isinstance(transform, T.HFlipTransform):
            columns = columns[::-1]
        elif isinstance(transform, T.VFlipTransform):
            rows = rows[::-1]
        elif isinstance(transform, T.CropTransform):
            rows = rows[transform.y0 : transform.y0 + transform.h]
            columns = columns[transform.x0 : transform.x0 + transform.w]
        elif not isinstance(transform, T.NoOpTransform):
            return None
    return rows, columns


def _nearest(before: int, after: int) -> np.ndarray:
    # Source pixel that contains the centre of each target pixel, in integer arithmetic.
    return (2 * np.arange(after) + 1) * before // (2 * after)


def _check_size(segmentation: Mapping[str, Any], frame: tuple[int, int]) -> None:
    if not isinstance(segmentation, Mapping) or tuple(segmentation.get("size", ())) != tuple(frame):
        found = segmentation.get("size") if isinstance(segmentation, Mapping) else type(segmentation).__name__
        raise DatasetError(
            f"segmentation is {found}, expected a COCO run-length encoding of size [{frame[0]}, {frame[1]}]"
        )
