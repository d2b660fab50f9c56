"""The searcher: a trained model that detects and embeds the persons of any picture."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError, ConfigError, DatasetError, PersonSearchError

if TYPE_CHECKING:
    import supervision
    import torch
    from detectron2.config import CfgNode
    from PIL.Image import Image

    from .store import StoreInfo

    ImageLike = str | Path | np.ndarray | Image


class PictureError(PersonSearchError):
    """A picture or its boxes are of a kind that the searcher does not take; the message says what it got."""


@dataclass(frozen=True)
class Detections:
    """Persons of one picture, by falling score.

    Attributes:
        boxes: (N, 4) float32, x0, y0, x1, y1 in pixels of the picture.
        scores: (N,) float32 in 0..1.
        embeddings: (N, d) float32 of unit length.
        image_size: (height, width) of the picture in pixels.
    """

    boxes: np.ndarray
    scores: np.ndarray
    embeddings: np.ndarray
    image_size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.scores)

    def to_supervision(self) -> supervision.Detections:
        """The same as supervision's `Detections`: class 0, and the embeddings as `data["embedding"]`."""
        import supervision

        return supervision.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=np.zeros(len(self), dtype=int),
            data={"embedding": self.embeddings.copy()},
        )


class PersonSearcher:
    """A trained model with all that it needs to detect and embed the persons of a picture.

    A picture is the path of an image file, a PIL image, or a uint8 array (height, width, 3) whose channels are red,
    green, blue, in this order. Files and PIL images are turned upright as their EXIF orientation says, and boxes count
    pixels of the upright picture. What the model returns is what `train_net.py --eval-only` evaluates.

    Attributes:
        config: The model's configuration.
        device: Device that the model runs on, such as "cuda" or "cpu".
    """

    def __init__(self, config: CfgNode | str | Path | None, weights: str | Path, *, device: str | None = None) -> None:
        """
        Args:
            config: A configuration, or the path of its YAML file; None takes the one that the checkpoint carries, or
                the config.yaml beside it.
            weights: Checkpoint of a training, or weights that the configuration fits.
            device: Device to run on; by default MODEL.DEVICE, or the CPU where that is a GPU and none is visible.

        Raises:
            CheckpointError: The weights are missing, damaged, do not fit the configuration or carry none.
            ConfigError: The configuration cannot be read, or no such device exists.
        """
        from detectron2.modeling import build_model

        from ..data.mapper import PersonSearchMapper
        from ..weights.checkpoint import PersonSearchCheckpointer

        self.weights = os.fspath(weights)
        self.config = _inference_config(config, self.weights, device)
        self.device: str = self.config.MODEL.DEVICE
        self._model = build_model(self.config)
        PersonSearchCheckpointer(self._model).load_for_inference(self.weights)
        self._model.eval()
        mapper = PersonSearchMapper(self.config, False)
        self._resize, self._format = mapper.augmentations, mapper.image_format
        self._info: StoreInfo | None = None

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return int(self.config.MODEL.REID_HEAD.EMBEDDING_DIM)

    @property
    def info(self) -> StoreInfo:
        """The model that its embeddings can be compared with: a store remembers it and refuses others."""
        if self._info is None:
            from ..evaluation.features import network_key
            from .store import StoreInfo

            name = f"{self.config.MODEL.META_ARCHITECTURE}, {self.config.MODEL.BACKBONE.NAME}"
            self._info = StoreInfo(name, network_key(self._model, self.config), self.dimension)
        return self._info

    def detect(self, image: ImageLike) -> Detections:
        """Persons of a picture.

        Raises:
            PictureError: It is none of the kinds of the class.
            DatasetError: The file cannot be read as an image.
        """
        return self.detect_batch([image])[0]

    def detect_batch(self, images: Sequence[ImageLike]) -> list[Detections]:
        """Persons of each of some pictures, in their order.

        Pictures of one size go through the model together. Those of others do not: the margin that would make them
        equal changes what the network sees at their edges.

        Raises:
            PictureError: One is none of the kinds of the class.
            DatasetError: A file cannot be read as an image.
        """
        inputs = [self._input(read_picture(image)) for image in images]
        by_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, entry in enumerate(inputs):
            by_size[tuple(entry["image"].shape)].append(number)
        found: dict[int, Detections] = {}
        for numbers in by_size.values():
            outputs = self._run([inputs[number] for number in numbers])
            found.update(zip(numbers, map(_detections, outputs, [inputs[n] for n in numbers]), strict=True))
        return [found[number] for number in range(len(inputs))]

    def embed(self, image: ImageLike, boxes: np.ndarray) -> np.ndarray:
        """Embeddings of given boxes of a picture.

        Args:
            image: A picture.
            boxes: (N, 4), x0, y0, x1, y1 in pixels of the upright picture.

        Returns:
            (N, d) float32 of unit length, in the order of the boxes.

        Raises:
            PictureError: The picture is none of the kinds of the class, or a box shows nothing of it.
            DatasetError: The file cannot be read as an image.
        """
        picture = read_picture(image)
        boxes = _checked_boxes(boxes, picture.shape[:2])
        if not len(boxes):
            return np.zeros((0, self.dimension), np.float32)
        (output,) = self._run([self._input(picture, boxes)])
        return _array(output["given_embeddings"])

    def _input(self, picture: np.ndarray, boxes: np.ndarray | None = None) -> dict[str, Any]:
        import torch
        from detectron2.data import transforms as T

        augmented = T.AugInput(picture if self._format == "RGB" else np.ascontiguousarray(picture[:, :, ::-1]))
        transforms = self._resize(augmented)
        pixels = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        entry: dict[str, Any] = {"image": pixels, "height": picture.shape[0], "width": picture.shape[1]}
        if boxes is not None:
            entry["given_boxes"] = torch.from_numpy(transforms.apply_box(boxes).astype(np.float32))
        return entry

    def _run(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        import torch

        with torch.no_grad():
            return self._model(inputs)


def read_picture(image: ImageLike) -> np.ndarray:
    """Pixels of a picture, uint8 (height, width, 3) in the order red, green, blue, turned upright.

    Args:
        image: The path of an image file, a PIL image or such an array.

    Raises:
        PictureError: It is none of these.
        DatasetError: The file cannot be read as an image.
    """
    from PIL import Image, ImageOps

    if isinstance(image, (str, Path)):
        from ..data.images import read_image

        return read_image(os.fspath(image), "RGB")
    if isinstance(image, Image.Image):
        try:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"), order="C")
        except Exception as error:  # a lazily read file may be damaged in as many ways as there are decoders
            raise DatasetError(f"the PIL image cannot be decoded ({type(error).__name__}: {error})") from error
    if not isinstance(image, np.ndarray):
        raise PictureError(
            f"a picture is a path, a PIL image or an RGB array, not {type(image).__module__}.{type(image).__qualname__}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise PictureError(
            f"an array of shape {image.shape} and type {image.dtype} is no picture: expected uint8 (height, width, 3), "
            "red, green, blue"
        )
    return np.ascontiguousarray(image)


def _checked_boxes(boxes: Any, size: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) float64, clipped to the picture."""
    try:
        array = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PictureError(f"boxes are {type(boxes).__name__}, expected an array (N, 4)") from error
    if not array.size and array.ndim < 3:
        return array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4 or not np.isfinite(array).all():
        raise PictureError(f"boxes of shape {array.shape} are no (N, 4) array of finite x0, y0, x1, y1")
    clipped = array.clip(min=0, max=[size[1], size[0]] * 2)
    empty = ((clipped[:, 2:] - clipped[:, :2]) < 1).any(axis=1)
    if empty.any():
        box = ", ".join(f"{value:g}" for value in array[empty.argmax()])
        raise PictureError(
            f"box ({box}) shows less than a pixel of a picture of {size[1]} x {size[0]}: expected x0, y0, x1, y1 "
            "in pixels, x0 < x1, y0 < y1"
        )
    return clipped


def _detections(output: Mapping[str, Any], entry: Mapping[str, Any]) -> Detections:
    instances = output["instances"]
    found = Detections(
        boxes=_array(instances.pred_boxes.tensor),
        scores=_array(instances.scores),
        embeddings=_array(instances.embeddings),
        image_size=(entry["height"], entry["width"]),
    )
    if not all(np.isfinite(values).all() for values in (found.boxes, found.scores, found.embeddings)):
        raise CheckpointError(
            "the model returned boxes, scores or embeddings that are not finite: its weights have diverged, use an "
            "earlier checkpoint"
        )
    return found


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.array(tensor.detach().to("cpu").float())


def _inference_config(config: CfgNode | str | Path | None, weights: str, device: str | None) -> CfgNode:
    """A frozen configuration with its device chosen."""
    import torch
    from detectron2.config import CfgNode, get_cfg

    from .. import add_ssl_config
    from ..config import merge_file_and_options
    from .checkpoint_config import merge_checkpoint_config

    if isinstance(config, CfgNode):
        cfg = config.clone()
        cfg.defrost()
    else:
        cfg = get_cfg()
        add_ssl_config(cfg)
        if config is not None:
            merge_file_and_options(cfg, os.fspath(config), [])
        else:
            merge_checkpoint_config(cfg, weights)
    cfg.MODEL.WEIGHTS = weights
    if device is not None:
        cfg.MODEL.DEVICE = device
    elif cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    try:
        torch.empty(0, device=cfg.MODEL.DEVICE)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ConfigError(f"device {cfg.MODEL.DEVICE!r} cannot be used: {str(error).splitlines()[0]}") from error
    cfg.freeze()
    return cfg
