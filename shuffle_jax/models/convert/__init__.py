"""Weights from state-dicts of torch: plain dictionaries of arrays by name, read without torch and without pickle.

Two sources are known: "torchvision", the widespread definitions of ShuffleNetV2, MobileNetV2 and ResNet, and "dcd", the
MobileNetV2 and ResNet that the authors of dynamic convolution by decomposition released. Names are facts of the
published definitions; :mod:`shuffle_jax.models.convert.tables` lists them.

>>> import jax, jax.numpy as jnp
>>> from shuffle_jax.models.convert import dynamic_conv
>>> from shuffle_jax.nn.dynamic_conv import DynamicConv
>>> shapes = {"conv": (6, 4, 1, 1), "q": (4, 4, 1, 1), "p": (6, 4, 1, 1), "fc.0": (2, 4), "fc.1.fc.0": (2, 2)}
>>> shapes |= {"fc_phi": (16, 2), "fc_scale": (6, 2), "bn1": (4,), "bn2": (4,)}
>>> arrays = {f"layer1.0.conv1.{name}.weight": jnp.ones(shape) for name, shape in shapes.items()}
>>> leaves = ("bias", "running_mean", "running_var")
>>> arrays |= {f"layer1.0.conv1.bn{i}.{leaf}": jnp.ones(4) for i in (1, 2) for leaf in leaves}
>>> layer = DynamicConv(6, kind="bottleneck", latent=4, hidden=2)
>>> layer.apply(dynamic_conv(arrays, "layer1.0.conv1"), jnp.ones((1, 5, 5, 4))).shape
(1, 5, 5, 6)
"""

from shuffle_jax.models.convert.arrays import load_arrays
from shuffle_jax.models.convert.tables import Source, count_classes
from shuffle_jax.models.convert.variables import convert, convert_network, dynamic_conv, dynamic_dense

__all__ = [
    "Source",
    "convert",
    "convert_network",
    "count_classes",
    "dynamic_conv",
    "dynamic_dense",
    "load_arrays",
]
