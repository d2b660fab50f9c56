"""Documentation: links lead somewhere, and modules, configs and programs that it names exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "projects" / "SSL" / "person_search"
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "datasets/*.md", "projects/SSL/*.md")
    for path in REPOSITORY.glob(pattern)
)


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if re.match(r"\w+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page: Path) -> None:
    project = REPOSITORY / "projects" / "SSL"
    roots = (REPOSITORY, PACKAGE, project, project / "configs", page.parent)
    named = re.findall(r"(?<![\w./$-])((?:[\w-]+/)+[\w-]+\.(?:py|yaml|md|svg))\b", page.read_text(encoding="utf-8"))
    made = ("output/", "pictures/")
    missing = [
        file for file in named if not file.startswith(made) and not any((root / file).exists() for root in roots)
    ]
    assert not missing


def test_pages_say_nothing_of_the_machine_they_were_written_on() -> None:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=REPOSITORY, capture_output=True, text=True)
    for file in listed.stdout.split():
        assert not re.search(r"(?<!\w)/(?:work|tmp|root|home)/", (REPOSITORY / file).read_text(encoding="utf-8")), file
