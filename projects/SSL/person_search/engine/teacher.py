"""A teacher: the exponential moving average of the network that trains. Not in the paper."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from detectron2.engine.hooks import HookBase

from ..modeling import SSLPersonSearch

_SHARED = "objective."


class Teacher:
    """Network whose weights and statistics follow those of the trained one slowly; it fills the banks and is evaluated.

    Attributes:
        model: the averaged network, in evaluation mode. Its objective is the trained network's own.
    """

    def __init__(self, model: SSLPersonSearch, momentum: float) -> None:
        """
        Args:
            model: the network that trains, not wrapped.
            momentum: weight of the old value in each update, in [0, 1).
        """
        self._student, self._momentum = model, momentum
        # The banks exist once.
        self.model = copy.deepcopy(model, {id(model.objective): model.objective}).eval()
        for name, parameter in self.model.named_parameters():
            if not name.startswith(_SHARED):
                parameter.requires_grad_(False)

    @torch.no_grad()
    def update(self, momentum: float | None = None) -> None:
        """Moves the average towards the network of now.

        Args:
            momentum: weight of the old value; None: that of the constructor; 0 copies the network.
        """
        weight = self._momentum if momentum is None else momentum
        student = self._student.state_dict()
        for name, value in self.state_dict().items():
            if value.is_floating_point():
                value.lerp_(student[name].to(value), 1 - weight)
            else:
                value.copy_(student[name])

    def state_dict(self) -> dict[str, Any]:
        """Weights and statistics by name, those of the objective left out."""
        return {k: v for k, v in self.model.state_dict().items() if not k.startswith(_SHARED)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        self.model.load_state_dict(state, strict=False)


class FollowWithTeacher(HookBase):
    """Moves the teacher after each iteration; before each further clustering it fills both banks anew."""

    def __init__(self, teacher: Teacher, fill: Callable[[], None], iterations: int) -> None:
        """
        Args:
            teacher: follows the network.
            fill: fills the banks from the teacher.
            iterations: from one clustering to the next.
        """
        self._teacher, self._fill, self._iterations = teacher, fill, iterations

    def before_step(self) -> None:
        if self.trainer.iter and self.trainer.iter % self._iterations == 0:
            self._fill()

    def after_step(self) -> None:
        self._teacher.update()
