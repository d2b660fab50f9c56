"""Errors with self-contained messages: what is wrong and where, what was expected, and what to do."""


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
