"""Weights: reading of weight files, pretrained networks, and checkpoints.

May import `modeling` and the top-level modules. Imported by `engine`, `search` and the programs.
"""

from .checkpoint import PersonSearchCheckpointer

__all__ = ["PersonSearchCheckpointer"]
