"""What a run prints: one line for an error that the user can mend, a traceback only for what nobody expected."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..errors import Interrupted, PersonSearchError
from ..io import is_disk_full

_INTERRUPTED = 130


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
        logger.log(logging.WARNING if isinstance(error, Interrupted) else logging.ERROR, "%s", error)
    else:
        print(f"error: {error}", file=sys.stderr)


@contextlib.contextmanager
def ending_in_one_line(how_to_go_on: str) -> Iterator[None]:
    """Ends the program with one line for what the user can mend or has asked for; anything else goes through.

    Args:
        how_to_go_on: what to do after an interruption.

    Raises:
        SystemExit: 130 after an interruption, as shells have it, 2 after an error.
    """
    try:
        yield
    except Interrupted as stopped:
        report(stopped)
        sys.exit(_INTERRUPTED)
    except KeyboardInterrupt:
        report(Interrupted(f"interrupted at once; what was saved before is whole: {how_to_go_on}"))
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
