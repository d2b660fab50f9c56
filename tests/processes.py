"""Processes that start within milliseconds: forks of a server that has imported PyTorch and the package already."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
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


def run_python(output: Path, folder: Path, *words: str) -> str:
    """What a program prints that ends well.

    Args:
        output: an empty folder for what it prints.
        folder: where it runs.
        words: those behind "python" on a command line: "-c" and code, or a file, and arguments.
    """
    process = start(_interpret, output, folder, words)
    process.join()
    printed, errors = ((output / name).read_text() for name in ("stdout", "stderr"))
    assert process.exitcode == 0, (printed + errors)[-3000:]
    return printed


def _interpret(output: Path, folder: Path, words: tuple[str, ...]) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        with (output / name).open("wb") as stream:
            os.dup2(stream.fileno(), descriptor)
    os.chdir(folder)
    if words[0] == "-c":
        sys.argv[:], code = ["-c", *words[2:]], compile(words[1], "<string>", "exec")
        exec(code, {"__name__": "__main__"})
    else:
        sys.argv[:] = words
        runpy.run_path(words[0], run_name="__main__")
