"""Instances from files: QAPLIB's pairs of matrices with their solutions, graphs as edge lists, matrices as .npy."""

from shuffle_jax.problems.graphs import read_graph, read_graphs, read_matrix
from shuffle_jax.problems.qaplib import read_qaplib

__all__ = ["read_graph", "read_graphs", "read_matrix", "read_qaplib"]
