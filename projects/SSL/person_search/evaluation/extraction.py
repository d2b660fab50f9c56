"""Runs a network over the frames of a test set, with a line now and then that says how fast and how long still."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from detectron2.evaluation import inference_context
from detectron2.utils import comm
from detectron2.utils.logger import log_every_n_seconds
from torch import nn

from ..errors import PersonSearchError, TrainingError
from .protocols import ImageOutput

logger = logging.getLogger(__name__)

_SECONDS_A_LINE = 5
T = TypeVar("T")


def image_output(image_id: str, output: Mapping[str, Any]) -> ImageOutput:
    """What a model returned for a frame, as arrays.

    Args:
        image_id: named in errors.
        output: "instances" (pred_boxes in pixels of the original frame, scores, embeddings (n, d)) and
            "given_embeddings" (R, d), which may be missing where no boxes were given.

    Raises:
        TrainingError: a box, score or embedding is not finite.
    """
    instances = output["instances"]
    feature = _array(instances.embeddings)
    given = output.get("given_embeddings")
    arrays = ImageOutput(
        box=_array(instances.pred_boxes.tensor),
        score=_array(instances.scores),
        feature=feature,
        given_feature=np.zeros((0, feature.shape[1]), np.float32) if given is None else _array(given),
    )
    if not all(np.isfinite(array).all() for array in vars(arrays).values()):
        raise TrainingError(
            f"frame {image_id}: the model returned boxes, scores or embeddings that are not finite; "
            "its weights have diverged, use an earlier checkpoint"
        )
    return arrays


def extract(
    model: nn.Module,
    batches: Iterable[Sequence[Mapping[str, Any]]],
    take: Callable[[dict[str, ImageOutput]], None],
    name: str,
    num_frames: int,
) -> None:
    """Runs the model over this process's frames, in evaluation mode and without gradients.

    Args:
        model: takes a batch and returns an output for each of its frames, see `image_output`.
        batches: inputs, each with "image_id".
        take: gets the outputs of a batch, by image_id.
        name: of the test set, for the messages.
        num_frames: those of all processes together.

    Raises:
        TrainingError: an output is not finite.
    """
    progress = Progress(name, num_frames, comm.get_world_size())
    with inference_context(model), torch.no_grad():
        for inputs in batches:
            progress.loaded()
            outputs = model(inputs)
            take({x["image_id"]: image_output(x["image_id"], y) for x, y in zip(inputs, outputs, strict=True)})
            progress.finished(len(inputs))
    logger.info(progress.summary())


class Progress:
    """Frames a second, share of the time spent waiting for images, and time left, every few seconds.

    Frames are split evenly over the processes, so what all have done is what this one has, times their number.
    """

    def __init__(self, name: str, num_frames: int, processes: int) -> None:
        """
        Args:
            name: of the test set.
            num_frames: those of all processes together.
            processes: how many share them.
        """
        self._name, self._num_frames, self._processes = name, num_frames, processes
        self._own, self._waited = 0, 0.0
        self._start = self._last = time.perf_counter()

    def loaded(self) -> None:
        """The next batch has come from the loader."""
        self._waited += time.perf_counter() - self._last

    def finished(self, frames: int) -> None:
        """A batch has gone through the network."""
        self._own += frames
        self._last = time.perf_counter()
        log_every_n_seconds(logging.INFO, self.line(), n=_SECONDS_A_LINE, name=__name__)

    def line(self) -> str:
        """The state in a line."""
        done, seconds = self._done(), self._seconds()
        left = (self._num_frames - done) * seconds / done if done else 0.0
        return (
            f"{self._name}: {done} of {self._num_frames} frames, {done / seconds:.3g} frames/s, {_clock(left)} left "
            f"({self._waited / seconds:.0%} of the time waiting for images)"
        )

    def summary(self) -> str:
        """A line for the end."""
        rate, time_taken = self._done() / self._seconds(), _clock(self._seconds())
        shared = f" on {self._processes} processes" if self._processes > 1 else ""
        return f"{self._name}: {self._done()} frames in {time_taken}, {rate:.3g} frames/s{shared}"

    def _done(self) -> int:
        return min(self._own * self._processes, self._num_frames)

    def _seconds(self) -> float:
        return max(self._last - self._start, 1e-9)


def from_main(compute: Callable[[], T]) -> T:
    """What `compute` returns on the first process, on all of them; every process has to call this.

    Raises:
        PersonSearchError: raised by `compute`; a process that did not get it would wait for the others in vain.
    """
    value, failure = None, None
    if comm.is_main_process():
        try:
            value = compute()
        except PersonSearchError as error:
            failure = error
    value, failure = comm.all_gather((value, failure))[0]
    if failure is not None:
        raise failure
    return value


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _array(tensor: torch.Tensor) -> np.ndarray:
    # A copy: a view would keep the larger tensor alive from which the model cut it.
    return np.array(tensor.detach().to("cpu", torch.float32))
