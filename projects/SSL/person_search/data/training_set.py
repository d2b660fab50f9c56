"""Training set with bank rows: one row per annotated person, over all datasets."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError, DatasetError
from .masks import attach_masks
from .registration import registered_records
from .video import split_video_frame


@dataclass(frozen=True)
class TrainingSet:
    """Records of all training datasets, with data of each bank row.

    Attributes:
        records: Detectron2 records; `instance_index` of an annotation is its bank row, counted over all records.
        image_index: (N,) int64, index of the record that shows the row's person.
        person_ids: (N,) int64, identity of each row, -1 if unknown; distinct between datasets. For diagnostics and for
            supervised methods only.
    """

    records: list[dict[str, Any]]
    image_index: np.ndarray
    person_ids: np.ndarray

    def __len__(self) -> int:
        """Number of annotated persons, N."""
        return len(self.image_index)

    @property
    def camera_index(self) -> np.ndarray:
        """Camera of each row, (N,) int64, -1 if unknown; distinct between datasets."""
        cameras = [-1 if r.get("camera_id") is None else r["camera_id"] for r in self.records]
        return np.asarray(cameras, np.int64)[self.image_index]

    @property
    def tracklet_index(self) -> np.ndarray:
        """(N,) int64, tracklet of each row, -1 if none. Tracklets of different datasets are distinct."""
        tracklets = [a.get("tracklet_id", -1) for record in self.records for a in record["annotations"]]
        return np.asarray(tracklets, np.int64)

    @property
    def identities(self) -> np.ndarray:
        """Identity of each row, (N,) int64, numbered from 0 without gaps in the order of the ids; -1 if unknown."""
        numbers = np.unique(self.person_ids[self.person_ids >= 0])
        return np.where(self.person_ids >= 0, np.searchsorted(numbers, self.person_ids), -1)

    def frame_of(self, instance_index: int) -> str:
        """File name of the frame with the person of a row."""
        return self.records[int(self.image_index[instance_index])]["file_name"]

    def check_images(self) -> None:
        """Checks that there are images; each missing one would otherwise be skipped with a warning.

        Raises:
            DatasetError: all images are missing; the message names the first.
        """
        files = (record["file_name"] for record in self.records)
        if not any(os.path.exists((split_video_frame(file) or (file,))[0]) for file in files):
            raise DatasetError(
                f"none of the {len(self.records)} training images exists, "
                f"the first is {self.records[0]['file_name']}: "
                "put the images into that folder, or set DETECTRON2_DATASETS to their root"
            )

    def fingerprint(self, with_identities: bool = False) -> str:
        """Digest of frames and boxes, equal for datasets whose bank rows stand for the same persons.

        Args:
            with_identities: whether to include identities, for methods that learn from them.
        """
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(record["image_id"].encode())
            digest.update(np.asarray([a["bbox"] for a in record["annotations"]], np.float32).tobytes())
        if with_identities:
            digest.update(self.identities.tobytes())
        return digest.hexdigest()


def load_training_set(names: Sequence[str], mask_files: Sequence[str] = (), filter_empty: bool = True) -> TrainingSet:
    """Training set from registered datasets, with their foreground masks.

    Args:
        names: registered datasets.
        mask_files: mask file of each dataset, or () for the default ones.
        filter_empty: whether to skip frames without persons.

    Raises:
        ConfigError: there are no names, one is not registered, or the number of mask files differs.
        DatasetError: a dataset cannot be read, or there are no frames to train on.
    """
    if not names:
        raise ConfigError("DATASETS.TRAIN is empty: name a registered dataset to train on")
    if mask_files and len(mask_files) != len(names):
        raise ConfigError(f"INPUT.PERSON_MASKS has {len(mask_files)} files for {len(names)} datasets in DATASETS.TRAIN")
    records: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        part = copy.deepcopy(registered_records(name))
        attach_masks(part, name, [mask_files[i]] if mask_files else [])
        if len(names) > 1:
            _set_apart(part, name, records)
        records += part
    if filter_empty:
        records = [r for r in records if r["annotations"]]
    if not records:
        raise DatasetError(f"{', '.join(names)}: no frame with an annotated person to train on")
    return number_rows(records)


def _set_apart(part: list[dict[str, Any]], name: str, others: list[dict[str, Any]]) -> None:
    """Makes image names, cameras, identities and tracklets of a dataset distinct from those of others, in place."""
    camera = 1 + max((r.get("camera_id") or 0 for r in others), default=-1)
    person, tracklet = (
        1 + max((a.get(key, -1) for r in others for a in r["annotations"]), default=-1)
        for key in ("person_id", "tracklet_id")
    )
    for record in part:
        record["image_id"] = f"{name}/{record['image_id']}"
        if record.get("camera_id") is not None:
            record["camera_id"] += camera
        for annotation in record["annotations"]:
            if annotation.get("person_id", -1) >= 0:
                annotation["person_id"] += person
            if annotation.get("tracklet_id", -1) >= 0:
                annotation["tracklet_id"] += tracklet


def number_rows(records: list[dict[str, Any]]) -> TrainingSet:
    """Training set with the annotations of records numbered from 0, in order; changes `instance_index` in place."""
    images: list[int] = []
    persons: list[int] = []
    for index, record in enumerate(records):
        for annotation in record["annotations"]:
            annotation["instance_index"] = len(images)
            images.append(index)
            persons.append(annotation.get("person_id", -1))
    return TrainingSet(records, np.asarray(images, np.int64), np.asarray(persons, np.int64))
