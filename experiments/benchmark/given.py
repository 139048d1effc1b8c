"""What every engine computes with: weights, images and labels, drawn by NumPy, so that no engine needs another one."""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.cases import CLASSES, Dtype, Workload
from shuffle_jax.models import NetworkConfig, build
from shuffle_jax.models.stem import StemKind
from shuffle_jax.typing import PyTree


class Network(NamedTuple):
    """Which network; what of a configuration is handed to another process."""

    family: str
    mixer: str
    width: float = 1.0
    depth: int | None = None
    stem: StemKind = "small"

    def config(self, dtype: Dtype = "float32") -> NetworkConfig:
        """Its configuration."""
        return NetworkConfig(**self._asdict(), dtype=dtype)

    def __str__(self) -> str:
        return f"{self.family}-{self.depth}" if self.depth else f"{self.family} {self.width}x"


class Given(NamedTuple):
    """What an engine is given.

    Attributes:
        variables: of our network, as arrays of NumPy.
        images: float32 (n, h, w, 3), normally distributed.
        labels: (n,).
    """

    variables: dict[str, PyTree]
    images: np.ndarray
    labels: np.ndarray


def given(work: Workload, network: Network) -> Given:
    """The same for the same arguments, in every process."""
    shape = work.image_size, work.image_size, 3
    rng = np.random.default_rng(1)
    images = rng.standard_normal((work.batch_size, *shape), np.float32)
    labels = rng.integers(0, CLASSES, work.batch_size)
    return Given(drawn(build(network.config(), CLASSES), shape), images, labels)


def drawn(module: nn.Module, shape: tuple[int, ...]) -> dict[str, PyTree]:
    """Variables for one image of this shape; scales, shifts and statistics unlike those of the start, which hide them.

    Kernels are such that signals keep their size.
    """
    rng = np.random.default_rng(0)

    def leaf(path: tuple[jax.tree_util.DictKey, ...], shape: jax.ShapeDtypeStruct) -> np.ndarray:
        match path[-1].key:
            case "scale" | "var":
                value = rng.uniform(0.8, 1.2, shape.shape)
            case "bias" | "mean":
                value = 0.1 * rng.standard_normal(shape.shape)
            case _:
                value = math.sqrt(2 / max(1, math.prod(shape.shape[:-1]))) * rng.standard_normal(shape.shape)
        return value.astype(np.float32)

    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *shape))))
    return dict(jax.tree_util.tree_map_with_path(leaf, shapes))
