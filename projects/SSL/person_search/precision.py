"""Matrix products whose results are compared and counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Within, GPUs multiply without TF32, whose ten bits would change neighbours and ranks, whatever the program has
    chosen for training."""
    chosen = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = chosen
