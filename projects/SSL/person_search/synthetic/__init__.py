"""Synthetic person search datasets: rendered streets with walking persons, identities and exact masks.

They need no download, so installation, training and evaluation can be tried and tested from end to end. They are no
substitute for real data, and metrics on them say nothing about any real dataset.

May import `data` and the top-level modules. Imported by `data.registration` and the programs.
"""

from .. import data  # noqa: F401  (first, since it imports this package to register the built-in datasets)
from .config import PRESETS, SyntheticConfig
from .datasets import load_synthetic, load_synthetic_protocol, register_builtin_synthetic, register_synthetic
from .storage import generate, read_config

__all__ = [
    "PRESETS",
    "SyntheticConfig",
    "generate",
    "load_synthetic",
    "load_synthetic_protocol",
    "read_config",
    "register_builtin_synthetic",
    "register_synthetic",
]
