"""Files of tests run one by one on the device that is measured, and what fails is named."""

from __future__ import annotations

import time

import pytest

from experiments.benchmark import machine, suite
from experiments.benchmark.effort import Effort, OutOfTime

PLATFORM = 'def test_platform():\n    import os\n    assert os.environ["JAX_PLATFORMS"] == "cuda,cpu"\n'
FAILING = "def test_good():\n    pass\n\ndef test_bad():\n    assert 1 == 2\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    monkeypatch.setattr(suite, "FOLDER", "own")
    (tmp_path / "own").mkdir()
    return tmp_path / "own"


def test_a_file_that_passes_is_counted_and_one_that_fails_is_refused_by_name(folder):
    (folder / "test_a.py").write_text(PLATFORM)
    (folder / "test_b.py").write_text(FAILING)
    found = suite.suite_tables("gpu")
    assert list(found) == ["own/test_a.py", "own/test_b.py"]
    good, bad = found.values()
    result = good.measure(Effort(1))
    assert result == {"tests": {"passed": 1}}
    assert good.show(good, result) == (["", "passed", "skipped"], [["numerical tests", 1, 0]])
    with pytest.raises(ArithmeticError, match=r"^test_bad failed: .*1 failed, 1 passed"):
        bad.measure(Effort(1))


def test_what_takes_too_long_is_left_and_without_tests_there_is_a_remedy(folder, monkeypatch):
    with pytest.raises(ValueError, match="run it in a clone after make install"):
        suite.suite_tables("cpu")
    (folder / "test_late.py").write_text("def test_late():\n    import time; time.sleep(600)\n")
    (late,) = suite.suite_tables("cpu").values()
    with pytest.raises(OutOfTime):
        late.measure(Effort(1, time.monotonic() + 1))
    monkeypatch.setattr(machine, "is_there", lambda name: False)
    with pytest.raises(ValueError, match="no pytest"):
        suite.suite_tables("cpu")
