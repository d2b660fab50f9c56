"""What a run prints: one line for an error that the user can mend, a traceback only for what nobody expected."""

from __future__ import annotations

import logging
import sys

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..errors import PersonSearchError


def setup_logging(output_dir: str) -> None:
    """Logs this package as Detectron2 logs itself: to the console and to log.txt."""
    setup_logger(output_dir, distributed_rank=comm.get_rank(), name="person_search", abbrev_name="ssl")


def quiet_expected_errors() -> None:
    """Keeps Detectron2's training loop from printing the traceback of an error that is reported in one line."""
    for name in ("detectron2.engine.train_loop", "detectron2.engine.hooks"):
        logging.getLogger(name).addFilter(_is_unexpected)


def report(error: PersonSearchError) -> None:
    """Prints an error in one line, and logs it where logging is set up."""
    logger = logging.getLogger("person_search")
    if logger.handlers:
        logger.error("%s", error)
    else:
        print(f"error: {error}", file=sys.stderr)


def _is_unexpected(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, (PersonSearchError, FloatingPointError))
