"""Matrix products whose results are compared and counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Within, GPUs multiply without TF32, whose ten bits would change neighbours and ranks, whatever the program has
    chosen for training."""
    matmul = torch.backends.cuda.matmul
    name: str
    chosen: bool | str
    full: bool | str
    try:
        name, chosen, full = "allow_tf32", matmul.allow_tf32, False
    except RuntimeError:  # the program has chosen through PyTorch's newer switch, beside which the older cannot be read
        name, chosen, full = "fp32_precision", matmul.fp32_precision, "ieee"
    setattr(matmul, name, full)
    try:
        yield
    finally:
        setattr(matmul, name, chosen)
