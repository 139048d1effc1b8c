from __future__ import annotations

import os
from pathlib import Path

import pytest

from experiments.cli import programs


def test_programs_that_were_not_used_for_long_and_those_beyond_the_limit_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1e9
    for name, days, size in (("a", 1, 400), ("b", 2, 500), ("c", 3, 200), ("d", 40, 1)):
        (tmp_path / name).write_bytes(bytes(size))
        os.utime(tmp_path / name, (now - 86400 * days,) * 2)
    programs.tidy(tmp_path, now)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]
    monkeypatch.setattr(programs, "LARGEST", 1000)
    programs.tidy(tmp_path, now)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_programs_are_in_the_folder_of_the_user_for_such_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert programs.user_folder().parent == Path("/somewhere/shuffle_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert programs.user_folder().parent == Path.home() / ".cache" / "shuffle_jax"
