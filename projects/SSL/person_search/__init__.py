"""SSL, self-similarity driven scale-invariant learning for weakly supervised person search, on Detectron2.

Importing the package registers the model parts, and the data sets below $DETECTRON2_DATASETS.
"""

try:
    import detectron2  # noqa: F401
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "person_search needs Detectron2, which is not installed. Run `make setup` for an environment that has it, or "
        "install it as its project describes, then `pip install -e .`"
    ) from error

from . import data, modeling  # noqa: F401  (registration)
from .config import add_ssl_config

__version__ = "0.1.0"
__all__ = ["__version__", "add_ssl_config"]
