"""Processes that start within milliseconds: forks of a server that has imported PyTorch and the package already."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from detectron2.engine import launch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pyarrow", "person_search.engine", "person_search.search.index"])


def _run(environment: dict[str, str], threads: int, function: Callable[..., None], *args: object) -> None:
    os.environ.clear()
    os.environ.update(environment)  # the server's is as old as the server
    torch.set_num_threads(threads)
    function(*args)


def _as_here(function: Callable[..., None]) -> Callable[..., None]:
    """The function with this process's environment and number of threads."""
    return partial(_run, dict(os.environ), torch.get_num_threads(), function)


def start(function: Callable[..., None], *args: object) -> multiprocessing.Process:
    """Runs function(*args) of a test module in a process of its own."""
    process = _CONTEXT.Process(target=_as_here(function), args=args)
    process.start()
    return process


def barrier(parties: int) -> object:
    """A barrier for processes that `start` gives."""
    return _CONTEXT.Barrier(parties)


def launch_two(function: Callable[..., None], *args: object) -> None:
    """Runs function(*args) of a test module in two processes that talk through gloo."""
    forked = partial(torch.multiprocessing.start_processes, start_method="forkserver")
    with mock.patch("torch.multiprocessing.start_processes", forked):
        launch(_as_here(function), 2, dist_url="auto", args=args)
