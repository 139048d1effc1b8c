"""The last layers of every network: from an image of features to logits."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.typing import Array, Float, Images


def classify(
    x: Images, classes: int, head: Callable[..., nn.Module], dropout: float, train: bool
) -> Float[Array, "n classes"]:
    """The mean over positions, dropout and a classifier, as submodules of the calling module.

    Args:
        x: ``(n, h, w, c)``.
        classes: number of classes.
        head: factory of the classifier, called as ``head(features=classes, name="head")``, of the mean in float32.
        dropout: share of the mean's channels that training sets to 0, by the random stream "dropout"; from 0, below 1.
        train: whether this is training.

    Returns:
        Float32 logits ``(n, classes)``.

    Raises:
        ValueError: the dropout is out of range.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
    x = x.mean((1, 2), dtype=jnp.float32)
    if train and dropout > 0:
        x = nn.Dropout(dropout, deterministic=False, name="dropout")(x)
    return head(features=classes, name="head")(x, train=train)
