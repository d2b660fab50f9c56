"""Processes of a training: spawned here or started by torchrun, which then have to find each other, and stopped."""

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
    """The place of this process among those that torchrun has started.

    Attributes:
        rank: among all, from 0.
        processes: of all machines.
        local_rank: among those of this machine, from 0; the GPU that it takes.
        local_processes: of this machine.
    """

    rank: int
    processes: int
    local_rank: int
    local_processes: int


def place_of_this_process(environment: Mapping[str, str]) -> Place | None:
    """What torchrun says in the environment; None where nothing has started several processes.

    Raises:
        ConfigError: srun has started several, which know nothing of each other, or machines have unequal numbers.
    """
    if all(name in environment for name in _TORCHRUN):
        place = Place(*(int(environment[name]) for name in _TORCHRUN[:4]))
        if place.processes % place.local_processes:
            raise ConfigError(
                f"torchrun has started {place.processes} processes, {place.local_processes} of them on this machine: "
                "start as many on each"
            )
        return place if place.processes > 1 else None
    if int(environment.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        raise ConfigError(
            f"srun has started {environment['SLURM_STEP_NUM_TASKS']} processes, which would train side by side: start "
            "one a machine, that of torchrun (tools/train_slurm.sh)"
        )
    return None


def started_by_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return all(name in os.environ for name in _TORCHRUN)


def run_processes(main: Callable[[argparse.Namespace], Any], arguments: argparse.Namespace) -> None:
    """Runs `main(arguments)` in each process of a training.

    Those that torchrun has started are joined; otherwise `--num-gpus` are spawned on each of `--num-machines`, as
    Detectron2 does. Both give the same training. A process that fails ends the program with its exit status.

    Args:
        main: handles its own errors; a process that was spawned imports it by its name.
        arguments: of Detectron2's `default_argument_parser`.

    Raises:
        ConfigError: torchrun has started processes, and others are asked for as well.
    """
    place = place_of_this_process(os.environ)
    if place is not None:
        _join(place, arguments)
        main(arguments)
        dist.destroy_process_group()
        return
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # says that it ends the others
    if (
        arguments.num_gpus * arguments.num_machines > 1
    ):  # they finish their iteration after Ctrl-C; this process waits for them
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
        # The process has said why; its traceback through the launcher would only hide it.
        sys.exit(exited.exit_code)


def _join(place: Place, arguments: argparse.Namespace) -> None:
    """Makes the process groups that Detectron2's `launch` makes for the processes that it spawns."""
    if arguments.num_gpus not in (1, place.local_processes) or arguments.num_machines > 1:
        raise ConfigError(
            f"torchrun has started {place.processes} processes, {place.local_processes} on this machine: leave "
            "--num-gpus and --num-machines out"
        )
    has_gpu = torch.cuda.is_available()
    if has_gpu and place.local_processes > torch.cuda.device_count():
        raise ConfigError(
            f"torchrun has started {place.local_processes} processes on this machine, which has "
            f"{torch.cuda.device_count()} GPUs: give --nproc_per_node as many"
        )
    dist.init_process_group("NCCL" if has_gpu else "GLOO", init_method="env://", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(place.local_processes)
    if has_gpu:
        torch.cuda.set_device(place.local_rank)
    comm.synchronize()


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
