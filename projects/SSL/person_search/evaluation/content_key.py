"""What a network returns for a frame depends on weights, settings and the frame: digests of these name what is
stored."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn

from ..data.video import split_video_frame

# To be raised with every change of the code that changes what the same weights return.
EXTRACTION_VERSION = 1

# Neither is read at test time: banks and losses, the exemplar branch, a counter of batch normalisation.
_TRAINING_ONLY = ("objective.", "exemplar_branch.")
_COUNTER = "num_batches_tracked"
_INPUT_KEYS = ("FORMAT", "RESIZE", "SIZE_DIVISIBILITY", "MIN_SIZE_TEST", "MAX_SIZE_TEST")
_TEST_KEYS = ("DETECTIONS_PER_IMAGE", "HALF_PRECISION", "CHANNELS_LAST")
# Where weights come from and on what they run: neither is content.
_PLACES = ("WEIGHTS", "DEVICE")


def weights_key(model: nn.Module) -> str:
    """Digest of everything that the model has learnt and reads at test time: names, types, shapes and values.

    Returns:
        64 hexadecimal digits; the same for equal weights in other files, with other banks or on another device.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name.startswith(_TRAINING_ONLY) or name.endswith(_COUNTER):
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def inference_settings(cfg: CfgNode) -> dict[str, Any]:
    """The keys that may change what the model returns, fit for JSON.

    All of MODEL is among them, training's keys too: one too many costs an extraction, one too few a wrong figure.
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
    """A digest of each frame's image and of the boxes that are embedded in it.

    An image is told by its file's size and time of change, as `make` does: reading every pixel would take minutes on a
    slow disk. Neither folder nor file name counts. A frame of a video is told by the video file and its number.

    Args:
        records: dataset records.
        given_boxes: image_id -> (R, 4).

    Returns:
        image_id -> 32 hexadecimal digits. A file that is not there has a digest too: reading it fails later.
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
        digest.update(boxes)
        keys[record["image_id"]] = digest.hexdigest()[:32]
    return keys


def _plain(value: Any) -> Any:
    if isinstance(value, CfgNode):
        return {name: _plain(child) for name, child in value.items()}
    return list(map(_plain, value)) if isinstance(value, (list, tuple)) else value
