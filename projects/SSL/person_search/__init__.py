"""SSL, self-similarity driven scale-invariant learning for weakly supervised person search, on Detectron2.

Importing `add_ssl_config` or `get_config` from here registers the model parts and the datasets below
$DETECTRON2_DATASETS, as do `person_search.modeling` and `person_search.data`. The package itself imports nothing heavy,
so its command line starts quickly.
"""

import getpass
import os
from importlib.util import find_spec
from typing import Any


def name_user() -> None:
    """Sets $LOGNAME if neither the environment nor the system has a name for the user.

    In a container started with `--user 54321`, /etc/passwd has no entry for the user. PyTorch names a folder after the
    user, and would fail with a KeyError.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):  # ImportError: the platform has no user database
        os.environ["LOGNAME"] = f"user{os.getuid()}" if hasattr(os, "getuid") else "user"


name_user()

if find_spec("detectron2") is None:  # pragma: no cover
    raise ImportError(
        "person_search needs Detectron2, which is not installed. Run `make setup` for an environment that has it, or "
        "install it as its project describes, then `pip install .`"
    )

__version__ = "0.1.0"
__all__ = ["__version__", "add_ssl_config", "get_config", "get_config_file"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import config, data, modeling  # noqa: F401  (registration)

    return getattr(config, name)
