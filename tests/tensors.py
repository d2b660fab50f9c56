"""Tensors that a computation makes, watched on the thread that computes."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Notes the elements of the largest result, or floating-point result, of any operation within."""

    def __init__(self, floating_point: bool = False) -> None:
        super().__init__()
        self.elements, self._floating_point = 0, floating_point

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor) and (value.is_floating_point() or not self._floating_point):
                self.elements = max(self.elements, value.numel())
        return result
