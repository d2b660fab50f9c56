"""The one way of writing files: whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from person_search.errors import CheckpointError, DatasetError
from person_search.io import replacing


@pytest.mark.parametrize("durable", [False, True])
def test_a_block_that_ends_well_puts_the_file_in_its_place(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new" / "file.txt"
    for content in ("old", "new"):
        with replacing(path, durable=durable) as temporary:
            temporary.write_text(content)
        assert path.read_text() == content
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path, stop: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(stop), replacing(path) as temporary:
        temporary.write_text("half")
        raise stop
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [DatasetError, CheckpointError])
def test_what_cannot_be_written_is_named_by_the_error_asked_for(tmp_path: Path, error: type[Exception]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match="cannot write .*file/results.json: File exists"):
        with replacing(tmp_path / "file" / "results.json", error=error) as temporary:
            temporary.write_text("")
