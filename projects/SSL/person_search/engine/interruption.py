"""A training that is asked to stop: it finishes its iteration and leaves a checkpoint to go on from."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from typing import Any

from detectron2.engine.hooks import HookBase
from detectron2.utils import comm

from ..errors import Interrupted
from .processes import started_by_torchrun

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# torchrun passes on what the terminal, or SLURM, has sent to its processes: within so many seconds it counts once.
_SAME = 5.0


class FinishOnSignal(HookBase):
    """On Ctrl-C or SIGTERM, ends the training after the iteration that is under way, with a checkpoint.

    In the middle of an iteration weights, optimizer and memory banks do not belong together, so a checkpoint of that
    moment could not be resumed from. Several processes stop after the same iteration. A second signal, or one before
    the first iteration, interrupts at once. A signal that is ignored stays so (nohup). Only the main
    thread can handle signals; elsewhere the hook does nothing.
    """

    def __init__(self) -> None:
        self._asked = self._running = False
        self._last = -math.inf
        self._before: dict[int, Any] = {}

    def before_train(self) -> None:
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heeded}

    def before_step(self) -> None:
        self._running = True

    def after_step(self) -> None:
        asked = self._asked if comm.get_world_size() == 1 else any(comm.all_gather(self._asked))
        done = self.trainer.iter + 1
        if not asked or done >= self.trainer.max_iter:
            return
        self.trainer.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
        raise Interrupted(
            f"stopped after {done} of {self.trainer.max_iter} iterations, and saved: the same command with --resume "
            "goes on from there"
        )

    def after_train(self) -> None:
        self._running = False
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _frame: Any) -> None:
        again = time.monotonic() - self._last < _SAME and started_by_torchrun()
        self._last = time.monotonic()
        if again:
            return
        if self._asked or not self._running:
            raise KeyboardInterrupt
        self._asked = True
        if comm.is_main_process():
            logger.warning("%s: stopping after this iteration; again: at once", signal.Signals(number).name)
