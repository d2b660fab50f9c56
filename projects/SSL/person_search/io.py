"""Files and folders: what programs ask of a folder before long work."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def probe_folder(folder: str | os.PathLike[str]) -> None:
    """Makes a folder where it is missing, and writes a file there that is gone at once.

    Raises:
        OSError: either cannot be done.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
