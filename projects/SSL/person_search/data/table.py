"""The frames of an official dataset as a few flat arrays, which a cache file holds as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .cache import Arrays
from .records import Frame, Person


@dataclass(frozen=True)
class FrameTable:
    """F frames with A boxes in all.

    Attributes:
        image_ids: (F,) str, the frames' names.
        sizes: (F, 2) int, height and width in pixels; 0 and 0 where the image cannot be read.
        counts: (F,) int, boxes of each frame; they sum to A.
        boxes: (A, 4) float64, (x0, y0, x1, y1) in pixels, frame after frame.
        person_ids: (A,) int64, identities; -1 is unlabelled.
    """

    image_ids: np.ndarray
    sizes: np.ndarray
    counts: np.ndarray
    boxes: np.ndarray
    person_ids: np.ndarray

    @classmethod
    def from_frames(
        cls,
        image_ids: Sequence[str],
        sizes: Sequence[tuple[int, int] | None],
        boxes: Sequence[np.ndarray],
        person_ids: Sequence[np.ndarray],
    ) -> FrameTable:
        """Joins what was read frame by frame: F sizes (None: unknown), arrays of boxes (n, 4), of identities (n,)."""
        return cls(
            np.array(image_ids, dtype=np.str_),
            np.asarray([size or (0, 0) for size in sizes], dtype=np.int64).reshape(-1, 2),
            np.array([len(rows) for rows in boxes], dtype=np.int64),
            np.concatenate([np.zeros((0, 4)), *boxes]).astype(np.float64),
            np.concatenate([np.zeros(0, np.int64), *person_ids]).astype(np.int64),
        )

    def arrays(self) -> Arrays:
        """The columns by name; `FrameTable(**arrays)` is the way back."""
        return dict(vars(self))

    def frames(self, folder: Path, camera_of: Callable[[str], int] | None = None) -> Iterator[Frame]:
        """The frames one by one; `folder` holds the images, `camera_of` tells a frame's camera from its name."""
        boxes, person_ids = self.boxes.tolist(), self.person_ids.tolist()
        start = 0
        for image_id, (height, width), count in zip(
            self.image_ids.tolist(), self.sizes.tolist(), self.counts.tolist(), strict=True
        ):
            rows = range(start, start + count)
            persons = [Person(tuple(boxes[row]), person_ids[row]) for row in rows]
            camera = camera_of(image_id) if camera_of is not None else None
            yield Frame(f"{folder}/{image_id}", image_id, height or None, width or None, persons, camera)
            start += count
