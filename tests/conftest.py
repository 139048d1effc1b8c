"""Networks that compile soon, and variables without initialisation, which would be most of the compilation."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def few_units():
    """Four units and not 16: every kind of unit and of stage, in a quarter of the compilation."""
    from shuffle_jax.models import shufflenet_v1, shufflenet_v2

    with pytest.MonkeyPatch.context() as patch:
        for module in (shufflenet_v1, shufflenet_v2):
            patch.setattr(module, "UNITS", (2, 1, 1))
        yield


def _draw(network, image_shape, seed=0):
    """Variables of a network, every statistic and every permutation at random."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        match path[-1].key:
            case "kernel":
                scale = (2 / max(1, np.prod(shape.shape[:-1]))) ** 0.5
                value = scale * rng.standard_normal(shape.shape)
            case "index":
                return rng.permutation(*shape.shape).astype(np.int32)
            case "relaxed_permutation":
                value = rng.dirichlet(np.full(shape.shape[0], 0.1), shape.shape[0])
            case "scale" | "var":
                value = rng.uniform(0.5, 1.5, shape.shape)
            case _:
                value = 0.3 * rng.standard_normal(shape.shape)
        return value.astype(np.float32)

    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    return jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.fixture(scope="session")
def draw():
    return _draw


@pytest.fixture(scope="session")
def contextual_figures():
    """By the name of a case, its configuration and its arrays: contextual convolutions, units and a network in torch.

    Each case is one row of numbers in the file, which is smaller so.
    """
    import json
    from pathlib import Path

    import numpy as np

    with np.load(Path(__file__).parent / "fixtures" / "coconv.npz") as file:
        cases, values = json.loads(str(file["manifest"])), {name: file[name] for name in file.files}

    def case(name):
        shapes = cases[name]["arrays"]
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
        parts = zip(shapes.items(), np.split(values[name], ends[:-1]), strict=True)
        return cases[name], {key: part.reshape(shape) for (key, shape), part in parts}

    return case
