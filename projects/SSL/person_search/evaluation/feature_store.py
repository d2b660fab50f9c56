"""What a network returned for the frames of a test set, kept on disk so that other protocols need no network."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from ..errors import DatasetError
from .protocols import ImageOutput
from .ragged import offsets_of
from .storage import replacing

logger = logging.getLogger(__name__)

# An interruption loses at most so much work of each process.
FRAMES_A_FILE = 200
SECONDS_A_FILE = 60.0

_PARTS = ("box", "score", "feature", "given_feature")


@dataclass(frozen=True)
class FeatureStore:
    """A folder of npz files, each with the outputs of some frames.

    The folder belongs to one test set and one network (see `network_key`). Each frame has a key of its own (see
    `frame_keys`): a frame whose key is another than the wanted one counts as not stored. Any number of processes may
    write at once.

    Attributes:
        folder: <root>/<dataset>-<first digits of the network's key>.
        network_key: written into every file.
    """

    folder: Path
    network_key: str

    @classmethod
    def of(cls, root: Path, dataset_name: str, network_key: str) -> FeatureStore:
        """The store of a test set and a network below `root`, which need not exist."""
        return cls(root / f"{dataset_name}-{network_key[:16]}", network_key)

    def load(self, wanted: Mapping[str, str]) -> dict[str, ImageOutput]:
        """The stored outputs of the wanted frames.

        Files that are damaged or hold nothing but outdated frames are deleted, with a message.

        Args:
            wanted: image_id -> key of the frame.

        Returns:
            image_id -> output, of those wanted frames that are stored.
        """
        found: dict[str, ImageOutput] = {}
        for file in sorted(self.folder.glob("*.npz")):
            try:
                rows = _read(file, self.network_key)
            except Exception as error:  # a damaged zip file makes numpy raise any of a dozen types
                logger.warning("%s is damaged (%s): its frames are extracted again", file, error)
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
        """Stores the outputs of frames, as a context manager.

        Args:
            wanted: image_id -> key of each frame that may come.
        """
        return StoreWriter(self, wanted)


@dataclass
class StoreWriter:
    """Collects outputs and writes a file every `FRAMES_A_FILE` frames or `SECONDS_A_FILE` seconds, and at the end.

    Also when the block ends with an error what came so far is written. If a file cannot be written, one message says
    so and no more are: the figures do not need the store.
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
        """Takes the outputs of some frames, by image_id."""
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
    # Named after the frames it holds: processes never write to one file, and a frame stored twice does no harm.
    name = hashlib.sha256(repr(sorted(rows)).encode()).hexdigest()[:24]
    arrays = {part: np.concatenate([getattr(output, part) for output in rows.values()]) for part in _PARTS}
    with replacing(store.folder / f"{name}.npz") as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            network_key=np.array(store.network_key),
            image_id=np.array([image_id for image_id, _ in rows]),
            frame_key=np.array([frame_key for _, frame_key in rows]),
            detections=np.array([len(output.score) for output in rows.values()]),
            given=np.array([len(output.given_feature) for output in rows.values()]),
            **arrays,
        )


def _read(file: Path, network_key: str) -> dict[tuple[str, str], ImageOutput]:
    with np.load(file, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    if str(arrays["network_key"]) != network_key:
        raise ValueError("it is of another network")
    detections, given = offsets_of(arrays["detections"]), offsets_of(arrays["given"])
    ends = {"box": detections, "score": detections, "feature": detections, "given_feature": given}
    for part, end in ends.items():
        if len(arrays[part]) != end[-1]:
            raise ValueError(f"{part} has {len(arrays[part])} rows, expected {end[-1]}")
    names = zip(arrays["image_id"].tolist(), arrays["frame_key"].tolist(), strict=True)
    return {
        name: ImageOutput(**{part: arrays[part][end[i] : end[i + 1]] for part, end in ends.items()})
        for i, name in enumerate(names)
    }
