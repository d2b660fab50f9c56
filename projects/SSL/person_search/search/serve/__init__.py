"""The page and HTTP API of `person-search serve`.

This module loads no web framework: the command line imports it for its arguments alone.
"""

from .command import add_serve_arguments, run_serve

__all__ = ["add_serve_arguments", "run_serve"]
