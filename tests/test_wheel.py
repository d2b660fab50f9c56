"""The package as `pip install .` brings it: configs, pages and styles are there without a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ANSWER = """
import person_search, sys
from person_search.config_files import CONFIG_FOLDER
cfg = person_search.get_config("prw")
print(person_search.__file__, cfg.SOLVER.MAX_EPOCH, len(list(CONFIG_FOLDER.rglob("*.yaml"))), sep="\\n")
"""


@pytest.fixture(scope="module")
def installed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a wheel of this checkout holds."""
    pytest.importorskip("setuptools.build_meta", reason="building a wheel needs setuptools")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    shutil.copytree(
        repository / "projects", source / "projects", symlinks=True, ignore=shutil.ignore_patterns("*.egg-info")
    )
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(target)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_every_file_of_the_package_is_in_the_wheel(repository, installed):
    package = repository / "projects" / "SSL" / "person_search"
    kinds = {".py", ".html", ".css", ".js", ".svg", ".yaml"}
    here = {path.relative_to(package) for path in package.rglob("*") if path.suffix in kinds}
    here |= {Path("configs") / path.relative_to(package / "configs") for path in (package / "configs").rglob("*.yaml")}
    there = {path.relative_to(installed / "person_search") for path in (installed / "person_search").rglob("*")}
    assert len(here) > 100 and not here - there


def test_configs_are_known_by_name_without_a_checkout(repository, installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-c", ANSWER], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    file, epochs, count = done.stdout.split()[-3:]
    assert Path(file).is_relative_to(installed) and epochs == "26"
    assert int(count) == len(list((repository / "projects" / "SSL" / "configs").rglob("*.yaml")))
