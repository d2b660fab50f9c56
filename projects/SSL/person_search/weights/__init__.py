"""Weights: files of every layout read, placed in the model and judged, and the checkpoints of a training.

May import `modeling` and the modules beside the folders. `engine`, `search` and the programs import it.
"""

from .checkpoint import PersonSearchCheckpointer

__all__ = ["PersonSearchCheckpointer"]
