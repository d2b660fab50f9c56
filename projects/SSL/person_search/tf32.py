"""Full precision of matrix products that decide about neighbors and ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Context in which GPUs multiply without TF32, whatever the program has set for training: its ten bits of precision
    would change neighbors and ranks."""
    matmul = torch.backends.cuda.matmul
    name: str
    chosen: bool | str
    full: bool | str
    try:
        name, chosen, full = "allow_tf32", matmul.allow_tf32, False
    except RuntimeError:  # the program uses PyTorch's newer setting, and the older one cannot be read
        name, chosen, full = "fp32_precision", matmul.fp32_precision, "ieee"
    setattr(matmul, name, full)
    try:
        yield
    finally:
        setattr(matmul, name, chosen)
