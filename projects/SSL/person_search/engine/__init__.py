"""Training: the trainer, its hooks, checkpoints and schedule."""

from .checkpoint import PersonSearchCheckpointer
from .solver import iterations_per_epoch, resolve_schedule
from .trainer import PersonSearchTrainer

__all__ = ["PersonSearchCheckpointer", "PersonSearchTrainer", "iterations_per_epoch", "resolve_schedule"]
