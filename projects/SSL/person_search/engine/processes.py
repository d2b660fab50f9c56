"""Processes of a training: spawned here, or started by torchrun and joined; and their graceful stop."""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.engine.hooks import HookBase
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm

from ..errors import ConfigError, Interrupted

logger = logging.getLogger(__name__)

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """Rank of this process among those started by torchrun.

    Attributes:
        rank: global rank, from 0.
        processes: number of processes on all machines.
        local_rank: rank on this machine, from 0, which is also its GPU.
        local_processes: number of processes on this machine.
    """

    rank: int
    processes: int
    local_rank: int
    local_processes: int


def place_of_this_process(environment: Mapping[str, str]) -> Place | None:
    """Rank of this process from torchrun's environment variables; None for a single process.

    Raises:
        ConfigError: machines run different numbers of processes, or srun started several independent processes.
    """
    if all(name in environment for name in _TORCHRUN):
        place = Place(*(int(environment[name]) for name in _TORCHRUN[:4]))
        if place.processes % place.local_processes:
            raise ConfigError(
                f"torchrun has started {place.processes} processes, {place.local_processes} of them on this machine: "
                "start the same number on each"
            )
        return place if place.processes > 1 else None
    if int(environment.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        raise ConfigError(
            f"srun has started {environment['SLURM_STEP_NUM_TASKS']} processes, which would train independently: start "
            "one torchrun per machine (tools/train_slurm.sh)"
        )
    return None


def started_by_torchrun() -> bool:
    """Whether this process was started by torchrun."""
    return all(name in os.environ for name in _TORCHRUN)


def run_processes(main: Callable[[argparse.Namespace], Any], arguments: argparse.Namespace) -> None:
    """Runs `main(arguments)` in every process of a training.

    Processes started by torchrun are joined; otherwise `--num-gpus` processes are spawned on each of `--num-machines`,
    as in Detectron2. Both train identically. If a process fails, the program exits with its status.

    Args:
        main: function that handles its own errors; spawned processes import it by name.
        arguments: arguments of Detectron2's `default_argument_parser`.

    Raises:
        ConfigError: processes started by torchrun conflict with `--num-gpus` or `--num-machines`.
    """
    place = place_of_this_process(os.environ)
    if place is not None:
        _join(place, arguments)
        main(arguments)
        dist.destroy_process_group()
        return
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # warnings about terminating the others
    if arguments.num_gpus * arguments.num_machines > 1:
        # On Ctrl-C the spawned processes finish their iteration, while this one waits.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        launch(
            main,
            arguments.num_gpus,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            args=(arguments,),
        )
    except torch.multiprocessing.ProcessExitedException as exited:
        # The process has reported its error, which a traceback through the launcher would only bury.
        sys.exit(exited.exit_code)


def _join(place: Place, arguments: argparse.Namespace) -> None:
    """Creates the same process groups as Detectron2's `launch`."""
    if arguments.num_gpus not in (1, place.local_processes) or arguments.num_machines > 1:
        raise ConfigError(
            f"torchrun has started {place.processes} processes, {place.local_processes} on this machine: omit "
            "--num-gpus and --num-machines"
        )
    has_gpu = torch.cuda.is_available()
    if has_gpu and place.local_processes > torch.cuda.device_count():
        raise ConfigError(
            f"torchrun has started {place.local_processes} processes on this machine, which has "
            f"{torch.cuda.device_count()} GPUs: set --nproc_per_node to {torch.cuda.device_count()}"
        )
    dist.init_process_group("NCCL" if has_gpu else "GLOO", init_method="env://", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(place.local_processes)
    if has_gpu:
        torch.cuda.set_device(place.local_rank)
    comm.synchronize()


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds within which signals count as one: torchrun forwards what the terminal or SLURM also sends to its processes.
_SAME = 5.0


class FinishOnSignal(HookBase):
    """Saves a checkpoint and stops after the current iteration on Ctrl-C or SIGTERM.

    Within an iteration, weights, optimizer and memory banks are inconsistent, so a checkpoint could not be resumed
    from. All processes stop after the same iteration. A second signal, or one before the first iteration, interrupts
    immediately. Ignored signals stay ignored (nohup). Signals can only be handled in the main thread; in others the
    hook does nothing.
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
            f"stopped after {done} of {self.trainer.max_iter} iterations, checkpoint saved: run the same command with "
            "--resume to continue"
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
            logger.warning("%s: stopping after this iteration; repeat to stop immediately", signal.Signals(number).name)
