"""Errors with self-contained messages: what is wrong and where, what was expected, and what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable


class PersonSearchError(RuntimeError):
    """Base of all errors in input that the user can fix. Entry points print them without a traceback."""


class DatasetError(PersonSearchError):
    """A file of a dataset is missing, unreadable or breaks the format; the message names file and field."""


class ConfigError(PersonSearchError):
    """A config key is unknown or has an invalid value; the message names the key."""


class CheckpointError(PersonSearchError):
    """Weights are missing, damaged or do not fit the model or the dataset; the message names the file."""


class ExportError(PersonSearchError):
    """A model cannot be traced, since the trace would fail or be wrong for other images."""


class LoaderError(PersonSearchError):
    """The worker processes that read images have failed; the message names the cause."""


class ExpectationError(PersonSearchError):
    """A metric differs from TEST.EXPECTED_RESULTS."""


class Interrupted(PersonSearchError):
    """The program was asked to stop; the message says how to continue. Its exit status is 130."""


class TrainingError(PersonSearchError):
    """Training cannot continue, for example since a loss became NaN; the message names iteration and images."""


def exit_status(program: Callable[[], object], interrupted: str = "interrupted") -> int:
    """Exit status of a program that is run here: 0, 1 where it returns False, 2 after an error, 130 after Ctrl-C.

    Args:
        program: what the user can mend and an interruption end it with one line on stderr; anything else goes through.
        interrupted: the line after an interruption; it says how to go on.
    """
    try:
        return 1 if program() is False else 0
    except PersonSearchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 130 if isinstance(error, Interrupted) else 2
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
