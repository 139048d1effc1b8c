"""Weights from state-dicts of torch: plain dictionaries of arrays by name, read without torch and without pickle.

Three sources are known: "torchvision", the widespread definitions of ShuffleNetV2, MobileNetV2 and ResNet, "dcd", the
MobileNetV2 and ResNet that the authors of dynamic convolution by decomposition released, and "coconv", the CoResNet of
those of contextual convolution. Names are facts of the
published definitions; :mod:`shuffle_jax.models.convert.tables` lists them.

::

    arrays = load_arrays("resnet18.safetensors")
    variables = convert_network(ResNet(count_classes(arrays, "torchvision"), depth=18), arrays, "torchvision")
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
