"""A name for the user whom the system knows by number alone, set when this module is imported.

In a container started with `--user 54321` the number has no line in /etc/passwd. PyTorch names a folder after the user,
and would end with a KeyError.
"""

from __future__ import annotations

import getpass
import os


def name_user() -> None:
    """Sets $LOGNAME where neither the environment nor the system has a name for the user."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):  # ImportError: no such users on this system
        os.environ["LOGNAME"] = f"user{os.getuid()}" if hasattr(os, "getuid") else "user"


name_user()
