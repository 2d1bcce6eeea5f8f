"""Files that are whole or not there, and earlier ones that keep their content."""

from __future__ import annotations

from pathlib import Path

import pytest

from elip.files import set_aside, whole_file


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with whole_file(path, durable=True) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"

    def fail() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "one"
    assert [each.name for each in path.parent.iterdir()] == ["file.txt"]


def test_set_aside_never_overwrites(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    set_aside(log)  # nothing there
    for text in ("first", "second"):
        log.write_text(text)
        set_aside(log)
    (tmp_path / "log-1.txt").unlink()
    log.write_text("third")
    set_aside(log)
    left = {each.name: each.read_text() for each in tmp_path.iterdir()}
    assert left == {"log-2.txt": "second", "log-3.txt": "third"}
