"""Logging of a run: one line for errors that the user can fix, a traceback for unexpected ones."""

from __future__ import annotations

import contextlib
import logging
import platform
import sys
import warnings
from collections.abc import Iterator

import detectron2
import torch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from .. import __version__
from ..errors import Interrupted, PersonSearchError
from ..io import is_disk_full

_INTERRUPTED = 130


def setup_logging(output_dir: str) -> None:
    """Sets up logging of this package, Detectron2 and fvcore to log.txt and, shortened, to the console.

    Config, environment and network are written to log.txt only. Call this before Detectron2's `default_setup`, which
    then uses these loggers.
    """
    rank = comm.get_rank()
    loggers = (
        setup_logger(output_dir, distributed_rank=rank, name="fvcore"),
        setup_logger(output_dir, distributed_rank=rank),
        setup_logger(output_dir, distributed_rank=rank, name="person_search", abbrev_name="ssl"),
    )
    for handler in (handler for logger in loggers for handler in logger.handlers):
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.addFilter(_is_for_the_console)
    # PyTorch's warnings about itself and Detectron2, which users can do nothing about.
    for name in ("torch.utils.cpp_extension", "torch.fx._symbolic_trace"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="torch.meshgrid")


def log_start(output_dir: str, device: str) -> None:
    """Logs a line with versions, device and output folder."""
    processes = comm.get_world_size()
    where = torch.cuda.get_device_name() if device.startswith("cuda") else device
    logging.getLogger(__name__).info(
        "person_search %s, Detectron2 %s, PyTorch %s, Python %s, on %s%s; %s has config.yaml and log.txt",
        __version__, detectron2.__version__, torch.__version__, platform.python_version(), where,
        f" in {processes} processes" if processes > 1 else "", output_dir,
    )  # fmt: skip


# Loggers of default_setup, dataset serialization, weight loading (which fvcore logs too) and machine-readable metrics.
_FOR_THE_FILE = {
    "detectron2",
    "detectron2.data.common",
    "detectron2.checkpoint.detection_checkpoint",
    "detectron2.evaluation.testing",
}
_LONGEST = 20  # lines


def _is_for_the_console(record: logging.LogRecord) -> bool:
    long = record.getMessage().count("\n") > _LONGEST
    return record.levelno > logging.INFO or not (record.name in _FOR_THE_FILE or long)


def quiet_expected_errors() -> None:
    """Suppresses the traceback that Detectron2's training loop logs for errors reported in one line."""
    for name in ("detectron2.engine.train_loop", "detectron2.engine.hooks"):
        logging.getLogger(name).addFilter(_is_unexpected)


def report(error: PersonSearchError) -> None:
    """Logs an error in one line, or prints it to stderr if logging is not set up."""
    logger = logging.getLogger("person_search")
    if logger.handlers:
        logger.log(logging.WARNING if isinstance(error, Interrupted) else logging.ERROR, "%s", error)
    else:
        print(f"error: {error}", file=sys.stderr)


@contextlib.contextmanager
def ending_in_one_line(how_to_go_on: str) -> Iterator[None]:
    """Context that ends the program with one line on interruptions and on errors that the user can fix.

    Args:
        how_to_go_on: hint on how to continue after an interruption.

    Raises:
        SystemExit: 130 after an interruption, as in shells; 2 after an error.
    """
    try:
        yield
    except Interrupted as stopped:
        report(stopped)
        comm.synchronize()  # all processes stop here, and the first to exit gets the others killed
        sys.exit(_INTERRUPTED)
    except KeyboardInterrupt:
        report(Interrupted(f"interrupted; earlier checkpoints are intact: {how_to_go_on}"))
        sys.exit(_INTERRUPTED)
    except PersonSearchError as error:
        report(error)
        sys.exit(2)
    except OSError as error:
        if not is_disk_full(error):
            raise
        report(PersonSearchError(f"{error.filename or 'a file'} cannot be written ({error.strerror}): free space"))
        sys.exit(2)


def _is_unexpected(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, (PersonSearchError, FloatingPointError)) or is_disk_full(error))
