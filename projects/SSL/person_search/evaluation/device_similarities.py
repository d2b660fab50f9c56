"""Similarities and their ranking on a device of PyTorch: the expensive part of the search figures on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..tf32 import full_precision
from .detections import DetectionIndex, Members
from .ranking import Found, Ranks

# Similarities that are held at once; sorting them takes four times their memory, 256 MB in single precision.
BLOCK_SIZE = 16_000_000


class DeviceSearch:
    """The detections on a device, to compute similarities with.

    Args:
        index: K > 0 detections.
        device: for example "cuda", "cuda:1" or "cpu".
    """

    def __init__(self, index: DetectionIndex, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self.feature = torch.from_numpy(index.feature).to(self.device)
        self.frame = torch.from_numpy(index.frame).to(self.device)
        self.camera = None if index.camera is None else torch.from_numpy(index.camera).to(self.device)
        self.num_frames = len(index.start)

    def similarities(self, query_feature: np.ndarray) -> DeviceSimilarities:
        """Those of b queries (b, d) of the detections' dtype."""
        with full_precision():
            return DeviceSimilarities(self, torch.from_numpy(query_feature).to(self.device) @ self.feature.T)

    def outside(self, members: Members, first: int, number: int) -> Tensor:
        """Whether each detection is outside the gallery of the queries `first`, `first + 1`, ...: (number, K) bool."""
        galleries, block = members.galleries, slice(first, first + number)
        if galleries.frame is not None:
            offset = galleries.frame_offset[first : first + number + 1]
            row = np.repeat(np.arange(number), np.diff(offset))
            inside = torch.zeros(number, self.num_frames, dtype=torch.bool, device=self.device)
            inside[self.tensor(row), self.tensor(galleries.frame[offset[0] : offset[-1]])] = True
            return ~inside[:, self.frame]
        outside = self.frame == self.tensor(galleries.excluded_frame[block])[:, None]
        if members.query_camera is not None:
            outside |= self.camera == self.tensor(members.query_camera[block])[:, None]
        return outside

    def tensor(self, array: np.ndarray) -> Tensor:
        """Integers as int64 on the device."""
        return torch.from_numpy(np.asarray(array, np.int64)).to(self.device)


class DeviceSimilarities:
    """`Similarities` as a tensor, ranked all queries at once by a sort."""

    def __init__(self, search: DeviceSearch, similarity: Tensor) -> None:
        """
        Args:
            search: the detections.
            similarity: (b, K).
        """
        self._search, self._similarity = search, similarity

    def __len__(self) -> int:
        return len(self._similarity)

    def at(self, row: np.ndarray, position: np.ndarray) -> np.ndarray:
        return self._similarity[self._search.tensor(row), self._search.tensor(position)].cpu().numpy()

    def array(self) -> np.ndarray:
        return self._similarity.cpu().numpy()

    def ranks(self, found: Sequence[Found], wanted: np.ndarray, best: int) -> list[Ranks]:
        return [self._ranks(one, wanted, best) for one in found]

    def _ranks(self, found: Found, wanted: np.ndarray, best: int) -> Ranks:
        offset, value = found.offset, found.value
        outside = self._search.outside(found.members, found.first, len(self))
        masked = self._similarity.masked_fill(outside, -torch.inf)
        rising = masked.sort(dim=1).values
        number = rising.shape[1]
        # One row of thresholds a query, filled up with ones that nothing reaches.
        count = np.diff(offset)
        row = np.repeat(np.arange(len(self)), count)
        column = np.arange(len(value)) - np.repeat(offset[:-1], count)
        threshold = np.full((len(self), count.max(initial=0)), np.inf, value.dtype)
        threshold[row, column] = value
        below = torch.searchsorted(rising, torch.from_numpy(threshold).to(masked.device)).cpu().numpy()
        bound = rising[:, -min(best, number), None]
        shown = (masked >= bound) & (masked > -torch.inf) & torch.from_numpy(wanted).to(masked.device)[:, None]
        best_row, best_position = shown.nonzero(as_tuple=True)
        best_value = masked[best_row, best_position]
        return Ranks(
            number - below[row, column], *(part.cpu().numpy() for part in (best_row, best_position, best_value))
        )
