"""Products whose entries are compared, counted or asserted keep all bits of float32, also where products are faster.

An accelerator rounds the factors of a product to 8 or 11 bits unless its precision is stated. No CPU does, so that the
programs are read and not their results.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from shuffle_jax.ops import invariants, local_search, orthogonal, penalty, relaxation, rounding, two_layer
from shuffle_jax.ops import quadratic_assignment as qap
from shuffle_jax.ops.frank_wolfe import frank_wolfe
from shuffle_jax.problems import search

C = 4
INDEX, MATRIX = jnp.arange(C), jnp.full((C, C), 1 / C)
PAIR = (jnp.ones((C, C)), jnp.eye(C))
PROBLEM = search.Problem(PAIR, jnp.int32(C))
WEIGHTS = jnp.ones((2, C))
KEY = jax.random.key(0)
CONFIG = search.SolverConfig(searches=1, iterations=1)


def gradient(function):
    return jax.grad(lambda *a: function(*a).sum())


PROGRAMS = {
    "matching_objective": (gradient(qap.matching_objective), MATRIX, PAIR),
    "assignment_objective": (gradient(qap.assignment_objective), MATRIX, PAIR),
    "assignment_slope": (qap.assignment_slope, MATRIX, PAIR),
    "exchange_deltas": (qap.exchange_deltas, INDEX, PAIR),
    "two_exchange": (local_search.two_exchange, INDEX, PAIR),
    "tabu_steps": (lambda p, pair: local_search.tabu_search(p, pair, KEY, 2), INDEX, PAIR),
    "frank_wolfe": (frank_wolfe, MATRIX, PAIR),
    "solver": (lambda given: search.advance(search.begin(KEY, given, CONFIG), KEY, 0, 1, given, CONFIG), PROBLEM),
    "assert_orthogonal": (invariants.assert_orthogonal, MATRIX),
    "orthogonality": (gradient(penalty.orthogonality), MATRIX),
    "orthogonality_certificate": (rounding.orthogonality_certificate, MATRIX),
    "orthostochastic": (gradient(relaxation.orthostochastic), MATRIX),
    "cayley": (gradient(orthogonal.cayley), MATRIX),
    "converged_sinkhorn": (gradient(relaxation.converged_sinkhorn), MATRIX),
    "two_layer_loss": (
        gradient(lambda m: two_layer.two_layer_loss(WEIGHTS, jnp.ones(2), m, INDEX)),
        MATRIX,
    ),
}


def products(jaxpr):
    """The precision that every product of a program states."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_product_states_the_highest_precision(name, monkeypatch):
    asserted = []
    monkeypatch.setattr(invariants, "_assert_true", lambda condition, _: asserted.append(condition))
    program, *arguments = PROGRAMS[name]
    found = list(products(jax.make_jaxpr(lambda *a: (program(*a), asserted))(*arguments).jaxpr))
    highest = jax.lax.Precision.HIGHEST
    assert found and all(precision in (highest, (highest, highest)) for precision in found)
