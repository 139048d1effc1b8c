"""Networks of :mod:`outside_networks` can be imported by that name, as a person's own would be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def networks():
    import outside_networks

    return outside_networks
