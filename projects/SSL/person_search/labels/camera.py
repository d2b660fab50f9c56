"""Camera-aware features: takes out what all persons seen by one camera have in common."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Weight, in rows, of the mean over all rows in a camera's mean: a camera seen rarely is corrected little.
_PRIOR_ROWS = 16


def centre_cameras(features: Tensor, cameras: NDArray) -> Tensor:
    """Moves the mean feature of every camera to the mean of all, so that the camera no longer drives the ranking.

    Light, colour and viewpoint of a camera shift all its features alike. Rows of one camera are thereby nearer to each
    other than rows of one person in two cameras, and neighbour lists fill with the own camera. Subtracting the camera's
    offset removes exactly that shared part; the rows are scaled to unit length again.

    Args:
        features: (N, d) float32 of unit length.
        cameras: (N,) integers, the camera of each row; rows of a negative number, camera unknown, are not moved.

    Returns:
        (N, d) float32 of unit length (a row that cancels to zero is returned as it was).
    """
    known = cameras >= 0
    if not known.any():
        return features
    index = torch.from_numpy(np.unique(cameras, return_inverse=True)[1].reshape(-1)).to(features.device)
    mask = torch.from_numpy(known).to(features.device)
    overall = features[mask].mean(0)
    total = features.new_zeros((int(index.max()) + 1, features.shape[1])).index_add_(0, index, features)
    rows = torch.bincount(index)[:, None]
    offset = (total - rows * overall) / (rows + _PRIOR_ROWS)
    moved = features - offset[index]
    norm = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
    return torch.where(mask[:, None] & (norm > 1e-6), moved / norm.clamp(min=1e-6), features)
