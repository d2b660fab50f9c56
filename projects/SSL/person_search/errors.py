"""Errors whose message alone tells a user what is wrong: what, where, what was expected and what to do."""


class PersonSearchError(RuntimeError):
    """Base of every error caused by input that the user can mend. The entry points print it without a traceback."""


class DatasetError(PersonSearchError):
    """A file of a dataset is missing, unreadable or breaks the format; the message names file and field."""


class ConfigError(PersonSearchError):
    """A configuration key is unknown or holds a value that cannot work; the message names the key."""


class CheckpointError(PersonSearchError):
    """Weights are missing, damaged or do not fit the model or the dataset; the message names the file."""


class ExportError(PersonSearchError):
    """A model cannot be traced: what would be written gives wrong answers, or none, on the next image."""


class LoaderError(PersonSearchError):
    """The processes that read images have failed; the message says what they lack."""


class ExpectationError(PersonSearchError):
    """A metric of an evaluation is not what TEST.EXPECTED_RESULTS says."""


class Interrupted(PersonSearchError):
    """Somebody asked the program to stop; the message says how to go on. Its exit status is 130."""


class TrainingError(PersonSearchError):
    """Training cannot go on (for example a loss became NaN); the message names iteration and images."""
