"""Outputs of a network for the frames of a test set: extraction with progress, and storage by digest."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_context
from detectron2.utils import comm
from torch import nn

from ..data.video import split_video_frame
from ..errors import DatasetError, PersonSearchError, TrainingError
from ..io import read_arrays, write_arrays
from ..progress import Progress
from .problem import offsets_of
from .protocols import ImageOutput

# Increase with every change of the code that changes the outputs of the same weights.
EXTRACTION_VERSION = 1

# Not used at test time: banks and losses, the exemplar branch, a counter of batch normalization.
_TRAINING_ONLY = ("objective.", "exemplar_branch.")
_COUNTER = "num_batches_tracked"
_INPUT_KEYS = ("FORMAT", "RESIZE", "SIZE_DIVISIBILITY", "MIN_SIZE_TEST", "MAX_SIZE_TEST")
_TEST_KEYS = ("DETECTIONS_PER_IMAGE", "HALF_PRECISION", "CHANNELS_LAST")
# Origin of the weights and device, which are not content.
_PLACES = ("WEIGHTS", "DEVICE")


def weights_key(model: nn.Module) -> str:
    """Digest of all weights and buffers used at test time: names, types, shapes and values.

    Returns:
        64 hexadecimal digits, equal for equal weights in other files, with other banks or on another device.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name.startswith(_TRAINING_ONLY) or name.endswith(_COUNTER):
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def inference_settings(cfg: CfgNode) -> dict[str, Any]:
    """Keys that may change the model's outputs, in JSON types.

    All of MODEL is included, also keys of training: one too many costs an extraction, one too few a wrong metric.
    """
    return {
        "MODEL": {name: _plain(value) for name, value in cfg.MODEL.items() if name not in _PLACES},
        "INPUT": {name: _plain(cfg.INPUT[name]) for name in _INPUT_KEYS},
        "TEST": {name: _plain(cfg.TEST[name]) for name in _TEST_KEYS},
    }


def network_key(model: nn.Module, cfg: CfgNode) -> str:
    """Digest (64 hexadecimal digits) of weights, settings and `EXTRACTION_VERSION`."""
    settings = json.dumps(inference_settings(cfg), sort_keys=True)
    return hashlib.sha256(f"{EXTRACTION_VERSION} {weights_key(model)} {settings}".encode()).hexdigest()


def frame_keys(records: Sequence[Mapping[str, Any]], given_boxes: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Digest of the image and of the embedded boxes of each frame.

    Images are identified by file size and modification time, as in `make`: reading all pixels would take minutes on a
    slow disk. Folder and file name are ignored. Video frames are identified by video file and number.

    Args:
        records: dataset records.
        given_boxes: (R, 4) boxes by image_id.

    Returns:
        32 hexadecimal digits by image_id. Missing files have a digest too, since reading them fails later.
    """
    keys = {}
    for record in records:
        file, number = split_video_frame(record["file_name"]) or (record["file_name"], None)
        try:
            status = os.stat(file)
            identity = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            identity = "absent"
        boxes = np.ascontiguousarray(given_boxes[record["image_id"]], np.float32)
        digest = hashlib.sha256(f"{identity} {number} {boxes.shape}\n".encode())
        digest.update(boxes.tobytes())
        keys[record["image_id"]] = digest.hexdigest()[:32]
    return keys


def _plain(value: Any) -> Any:
    if isinstance(value, CfgNode):
        return {name: _plain(child) for name, child in value.items()}
    return list(map(_plain, value)) if isinstance(value, (list, tuple)) else value


logger = logging.getLogger(__name__)

T = TypeVar("T")


def image_output(image_id: str, output: Mapping[str, Any]) -> ImageOutput:
    """Outputs of a model for a frame, as arrays.

    Args:
        image_id: name of the frame, for error messages.
        output: "instances" (pred_boxes in pixels of the original frame, scores, embeddings (n, d)) and
            "given_embeddings" (R, d), which may be missing if no boxes were given.

    Raises:
        TrainingError: a box, score or embedding is not finite.
    """
    instances = output["instances"]
    feature = _array(instances.embeddings)
    given = output.get("given_embeddings")
    arrays = ImageOutput(
        box=_array(instances.pred_boxes.tensor),
        score=_array(instances.scores),
        feature=feature,
        given_feature=np.zeros((0, feature.shape[1]), np.float32) if given is None else _array(given),
    )
    if not all(np.isfinite(array).all() for array in vars(arrays).values()):
        raise TrainingError(
            f"frame {image_id}: the model returned boxes, scores or embeddings that are not finite; "
            "its weights have diverged, use an earlier checkpoint"
        )
    return arrays


def extract(
    model: nn.Module,
    batches: Iterable[Sequence[Mapping[str, Any]]],
    take: Callable[[dict[str, ImageOutput]], None],
    name: str,
    num_frames: int,
) -> None:
    """Runs the model on this process's frames, in evaluation mode and without gradients.

    Args:
        model: returns an output for each frame of a batch, see `image_output`.
        batches: inputs, each with "image_id".
        take: receives the outputs of a batch, by image_id.
        name: name of the test set, for messages.
        num_frames: number of frames over all processes.

    Raises:
        TrainingError: an output is not finite.
    """
    progress = Progress(name, num_frames, "frames", processes=comm.get_world_size())
    with inference_context(model), torch.no_grad():
        for inputs in batches:
            progress.loaded()
            outputs = model(inputs)
            take({x["image_id"]: image_output(x["image_id"], y) for x, y in zip(inputs, outputs, strict=True)})
            progress.finished(len(inputs))
    logger.info(progress.summary())


def from_main(compute: Callable[[], T]) -> T:
    """Result of `compute` on the main process, broadcast to all; to be called on every process.

    Raises:
        PersonSearchError: raised by `compute`, on all processes, since others would wait in vain.
    """
    value, failure = None, None
    if comm.is_main_process():
        try:
            value = compute()
        except PersonSearchError as error:
            failure = error
    value, failure = comm.all_gather((value, failure))[0]
    if failure is not None:
        raise failure
    return value


def _array(tensor: torch.Tensor) -> np.ndarray:
    # A copy, since a view would keep the whole tensor alive.
    return np.array(tensor.detach().to("cpu", torch.float32))


# Work of each process that an interruption loses at most.
FRAMES_A_FILE = 200
SECONDS_A_FILE = 60.0

_PARTS = ("box", "score", "feature", "given_feature")
_ARRAYS = ("network_key", "image_id", "frame_key", "detections", "given", *_PARTS)


@dataclass(frozen=True)
class FeatureStore:
    """Folder of npz files with the outputs of frames.

    The folder belongs to a test set and a network (see `network_key`). Every frame has a key (see `frame_keys`): a
    frame with another key than the wanted one counts as not stored. Any number of processes may write at once.

    Attributes:
        folder: <root>/<dataset>-<first digits of the network's key>.
        network_key: key stored in every file.
    """

    folder: Path
    network_key: str

    @classmethod
    def of(cls, root: Path, dataset_name: str, network_key: str) -> FeatureStore:
        """Store of a test set and a network below `root`, which need not exist."""
        return cls(root / f"{dataset_name}-{network_key[:16]}", network_key)

    def load(self, wanted: Mapping[str, str]) -> dict[str, ImageOutput]:
        """Stored outputs of the wanted frames.

        Damaged files, and files with outdated frames only, are deleted with a message.

        Args:
            wanted: key of each frame by image_id.

        Returns:
            outputs by image_id, for those wanted frames that are stored.
        """
        found: dict[str, ImageOutput] = {}
        for file in sorted(self.folder.glob("*.npz")):
            try:
                rows = _read(file, self.network_key)
            except DatasetError as error:
                logger.warning("%s is damaged: its frames are extracted again (%s)", file, error)
                file.unlink(missing_ok=True)
                continue
            valid = {name: output for (name, key), output in rows.items() if wanted.get(name) == key}
            found |= valid
            if len(valid) < len(rows):
                logger.warning(
                    "%s: %d of its %d frames are outdated (image or annotated boxes have changed since)",
                    file, len(rows) - len(valid), len(rows),
                )  # fmt: skip
            if not valid:
                file.unlink(missing_ok=True)
        return found

    def writer(self, wanted: Mapping[str, str]) -> StoreWriter:
        """Context manager that stores the outputs of frames.

        Args:
            wanted: key of each frame by image_id.
        """
        return StoreWriter(self, wanted)


@dataclass
class StoreWriter:
    """Writer of outputs: a file every `FRAMES_A_FILE` frames or `SECONDS_A_FILE` seconds, and at the end.

    The outputs so far are written also if the block ends with an error. If a file cannot be written, this is logged
    once and no more files are written: metrics do not need the store.
    """

    store: FeatureStore
    wanted: Mapping[str, str]
    _waiting: dict[str, ImageOutput] = field(default_factory=dict)
    _written: float = field(default_factory=time.monotonic)
    _broken: bool = False

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()

    def add(self, outputs: Mapping[str, ImageOutput]) -> None:
        """Adds the outputs of frames, by image_id."""
        self._waiting |= outputs
        if len(self._waiting) >= FRAMES_A_FILE or time.monotonic() - self._written >= SECONDS_A_FILE:
            self._write()

    def _write(self) -> None:
        if self._waiting and not self._broken:
            try:
                _write(self.store, {(name, self.wanted[name]): output for name, output in self._waiting.items()})
            except DatasetError as error:
                logger.warning("features are not stored, the next evaluation has to extract them again: %s", error)
                self._broken = True
        self._waiting = {}
        self._written = time.monotonic()


def _write(store: FeatureStore, rows: Mapping[tuple[str, str], ImageOutput]) -> None:
    # Named by the frames it has: processes never write to the same file, and duplicates are harmless.
    name = hashlib.sha256(repr(sorted(rows)).encode()).hexdigest()[:24]
    arrays: dict[str, Any] = {
        part: np.concatenate([getattr(output, part) for output in rows.values()]) for part in _PARTS
    }
    write_arrays(
        store.folder / f"{name}.npz",
        {
            "network_key": np.array(store.network_key),
            "image_id": np.array([image_id for image_id, _ in rows]),
            "frame_key": np.array([frame_key for _, frame_key in rows]),
            "detections": np.array([len(output.score) for output in rows.values()]),
            "given": np.array([len(output.given_feature) for output in rows.values()]),
            **arrays,
        },
    )


def _read(file: Path, network_key: str) -> dict[tuple[str, str], ImageOutput]:
    arrays = read_arrays(file, "a file of a feature store")
    missing = [name for name in _ARRAYS if name not in arrays]
    if missing:
        raise DatasetError(f"array {missing[0]} is missing")
    if str(arrays["network_key"]) != network_key:
        raise DatasetError("it is of another network")
    frames = len(arrays["image_id"])
    for name in ("frame_key", "detections", "given"):
        if arrays[name].shape != (frames,):
            raise DatasetError(f"{name} has shape {arrays[name].shape}, expected {(frames,)}")
    detections, given = offsets_of(arrays["detections"]), offsets_of(arrays["given"])
    ends = {"box": detections, "score": detections, "feature": detections, "given_feature": given}
    for part, end in ends.items():
        if len(arrays[part]) != end[-1]:
            raise DatasetError(f"{part} has {len(arrays[part])} rows, expected {end[-1]}")
    names = zip(arrays["image_id"].tolist(), arrays["frame_key"].tolist(), strict=True)
    return {
        name: ImageOutput(**{part: arrays[part][end[i] : end[i + 1]] for part, end in ends.items()})
        for i, name in enumerate(names)
    }
