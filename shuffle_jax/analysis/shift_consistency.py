"""Whether the class of an image survives when the image is moved, and which layers of a network are to blame if not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from shuffle_jax.naming import some
from shuffle_jax.typing import Array, Float, Images, Int, PyTree

Place = tuple[Int[np.ndarray, " h"], Int[np.ndarray, " w"]]
"""A moved image: which rows and which columns of the image it shows."""


class Consistency(NamedTuple):
    """What moving leaves.

    Attributes:
        survived: share of the images whose class is the same at every place.
        kept: share of the pairs of an image and a place whose class is that of the image as it is.
        changed: the largest change of a logit, over the largest logit of the images as they are.
    """

    survived: float
    kept: float
    changed: float


def circular(size: tuple[int, int], shifts: range) -> list[Place]:
    """Images moved around a circle: what leaves at one side comes in at the other.

    Args:
        size: rows and columns.
        shifts: by how many rows down, and for each by how many columns to the right.

    >>> [columns.tolist() for _, columns in circular((1, 3), range(2))[:2]]
    [[0, 1, 2], [2, 0, 1]]
    """
    return _every(size, shifts, np.mod)


def crops(size: tuple[int, int], shifts: range) -> list[Place]:
    """Images as a crop elsewhere shows them: what leaves at one side is gone, the border is repeated at the other.

    Args:
        size: as of :func:`circular`.
        shifts: as there.

    >>> [columns.tolist() for _, columns in crops((1, 3), range(2))[:2]]
    [[0, 1, 2], [0, 0, 1]]
    """
    return _every(size, shifts, lambda places, n: places.clip(0, n - 1))


def _every(size: tuple[int, int], shifts: range, within: Callable[[Any, int], Any]) -> list[Place]:
    rows, columns = ([within(np.arange(n) - by, n).astype(np.int32) for by in shifts] for n in size)
    return [(row, column) for row in rows for column in columns]


Moved = Callable[..., Float[Array, "n k"]]
"""From variables, images, rows and columns to the logits of the images that these show."""


def moved(apply: Callable[..., Any]) -> Moved:
    """A network, called as ``apply(variables, images)``, that sees images at a place: compiled once for all places."""
    return jax.jit(lambda variables, images, rows, columns: apply(variables, images[:, rows][:, :, columns]))


def logits_at(network: Moved, variables: PyTree, images: Images, places: Sequence[Place]) -> Float[np.ndarray, "p n k"]:
    """The logits of images at every place."""
    return np.stack([np.asarray(network(variables, images, *place), np.float32) for place in places])


def consistency(true: Float[np.ndarray, "n k"], moved: Float[np.ndarray, "p n k"]) -> Consistency:
    """Compares the logits of images at many places with those of the images as they are.

    >>> consistency(np.eye(2), np.stack([np.eye(2), np.ones((2, 2))]))
    Consistency(survived=0.5, kept=0.75, changed=1.0)
    """
    same = moved.argmax(-1) == true.argmax(-1)
    change, largest = float(np.abs(moved - true).max()), float(np.abs(true).max())
    return Consistency(float(same.all(0).mean()), float(same.mean()), change / largest if largest else change)


NAMED = 3
"""Layers of a kind that are named; the others are counted."""


def in_words(breakers: Mapping[str, Sequence[str]]) -> str:
    """What :func:`shift_breakers` finds, in a part of a line.

    >>> in_words({"strides": ["stem/conv"], "pads with zeros": list("abcde")})
    'strides: stem/conv; pads with zeros: a, b, c and 2 more'
    """
    return "; ".join(f"{reason}: {some(paths, NAMED)}" for reason, paths in breakers.items())


def shift_breakers(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, list[str]]:
    """The layers through which an image that is moved circularly does not come as the same image, moved.

    A layer of a class with such a habit says so itself, by a method ``breaks_shifts(x) -> str`` from the shape of its
    input to the reason, which is empty where it has none.

    Args:
        network: called as ``network(images)``; its shapes are traced, and nothing is run.
        image_shape: (h, w, c).

    Returns:
        By the reason, the paths of the layers, in the order of their calls.

    >>> from shuffle_jax.nn import Conv
    >>> shift_breakers(Conv(4, 3, name="stem"), (8, 8, 3))
    {'pads with zeros': ['stem']}
    """
    found: dict[str, list[str]] = {}

    def visit(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name == "__call__" and (ask := getattr(module, "breaks_shifts", None)) is not None:
            path = "/".join(module.path) or module.name or type(module).__name__
            if (reason := ask(args[0])) and path not in found.get(reason, ()):
                found.setdefault(reason, []).append(path)
        return call(*args, **kwargs)

    with nn.intercept_methods(visit):
        jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return found
