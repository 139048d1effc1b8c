"""Compilation for tests that compile once and run once."""

from __future__ import annotations

from functools import partial

import jax
import pytest


@pytest.fixture(scope="session")
def compiled():
    """``jax.jit`` without the optimisations that cost most of the compilation."""
    return partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
