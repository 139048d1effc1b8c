"""What tests of commands share: a mistake, as whoever typed the command sees it."""

from __future__ import annotations

import pytest


@pytest.fixture
def mistake(capsys):
    """A function that runs a command which cannot be, and gives the one line that it says."""
    from experiments.cli import main

    def said(run, arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(lambda: run([str(word) for word in arguments]))
        printed = capsys.readouterr()
        assert (end.value.code, printed.out, printed.err.count("\n")) == (2, "", 1), printed
        return printed.err

    return said
