"""A synthetic person search dataset: rendered streets with walking persons, their identities and exact masks.

It needs no download, so that installation, training and evaluation can be tried and tested from end to end. It is no
substitute for real data, and metrics measured on it say nothing about any real dataset.

May import `data` and the modules beside the folders. `data.registration` and the programs import it.
"""

from .. import data  # noqa: F401  (first: it imports this package while it registers the built-in sets)
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
