"""Files are there whole or not at all, and errors of the disk say which."""

from __future__ import annotations

import errno

import pytest

from shuffle_jax.files import replace_file


def test_files_are_replaced_whole(tmp_path):
    path = tmp_path / "a" / "file"
    replace_file(path, b"one")
    replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_write_that_fails_names_the_file_and_leaves_no_half(tmp_path, monkeypatch):
    path = tmp_path / "file"
    replace_file(path, b"one")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shuffle_jax.files.os.fsync", full)
    with pytest.raises(OSError) as failure:
        replace_file(path, b"two")
    assert failure.value.filename == str(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_bytes() == b"one"
