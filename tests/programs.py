"""Programs of the repository that lie in no package, loaded as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_program(path: Path) -> ModuleType:
    """The module of a program; its name is that of the file, behind "program_", and its `main` does not run."""
    name = f"program_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(specification)  # where dataclasses look it up
    specification.loader.exec_module(module)
    return module
