"""CondConv and DY-Conv, with which dynamic convolutions are compared: a weighted sum of kernels for each image."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from shuffle_jax.nn.collections import training_progress
from shuffle_jax.nn.convolution import breaks_shifts, fan_out_init, in_float32
from shuffle_jax.nn.dynamic_conv import Form
from shuffle_jax.nn.limits import check_positive
from shuffle_jax.nn.normalization import scale_outputs
from shuffle_jax.nn.window import Window, window
from shuffle_jax.ops import kernel_attention, per_sample
from shuffle_jax.ops.barrier import computed_once
from shuffle_jax.ops.convolution import Padding
from shuffle_jax.ops.permutation import check_groups
from shuffle_jax.ops.relaxation import softmax_rows
from shuffle_jax.typing import Array, Float, Images, Key


class KernelAttention(nn.Module):
    """What :class:`CondConv` and :class:`DYConv` share: ``y = (sum_k r_k(x) W_k) * x + sum_k r_k(x) b_k``.

    They differ in the submodule ``generator``, which makes the weights r from the mean of the image over its positions.
    Training and evaluation compute the same, in one of two forms of one function: K features and their weighted sum, or
    a kernel for each image, see :mod:`shuffle_jax.ops.kernel_attention`. Memory for each image is that of K features,
    or of one kernel and the patches it sees.

    They take the place of :class:`shuffle_jax.nn.convolution.PointwiseConv` (with the default kernel size), of
    :class:`shuffle_jax.nn.convolution.Conv` and of :class:`shuffle_jax.nn.dynamic_conv.DynamicConv`.

    Attributes:
        features: output channels.
        kernel_size: k of a square window, or one number for each axis.
        stride: the same for all axes.
        padding: zeros before and after each axis, ``k // 2`` by default (None); "wrap": as many of the opposite side.
        groups: of every kernel, a divisor of the channels in and out.
        count: K, the number of kernels.
        use_bias: adds a learned constant for each kernel, weighted as the kernels are.
        form: what is computed: K "features" and their sum, "kernels" for each image, or ("auto" and "fewest") what
            takes fewer multiply-adds.
        kernel_init: of each kernel by itself: K does not count in its fan.
        head_init: of the kernels of the head.
        dtype: type of the computation; that of the input by default. Parameters and head are float32.
    """

    features: int
    kernel_size: int | tuple[int, ...] = 1
    stride: int = 1
    padding: tuple[tuple[int, int], ...] | Padding | None = None
    groups: int = 1
    count: int = 4
    use_bias: bool = False
    form: Form = "auto"
    kernel_init: nn.initializers.Initializer = fan_out_init
    head_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n *space c"], train: bool = False) -> Float[Array, "n *out o"]:
        """Maps ``(n, h, w, c)`` to ``(n, oh, ow, features)``, or ``(n, l, c)`` to ``(n, ol, features)``.

        Raises:
            ValueError: sizes that do not fit the channels or each other.
        """
        view, channels = self._window(x.shape), x.shape[-1]
        for channel_count in (channels, self.features):
            check_groups(channel_count, self.groups)
        check_positive(count=self.count)
        dtype, sequence, x = self.dtype or x.dtype, x.ndim == 3, computed_once(lambda x: x, x)
        weights = self._weights(x.mean(tuple(range(1, x.ndim - 1)), dtype=jnp.float32)).astype(dtype)
        x = x.reshape(x.shape[0], *view.image, channels).astype(dtype)
        shape = self.count, *view.size, channels // self.groups, self.features
        kernels = self.param("kernels", self._start, shape).astype(dtype)
        if self._aggregates(view, channels):
            own = kernel_attention.aggregate(weights, kernels)
            y = per_sample.convolution(x, own, self.stride, view.pads, self.groups)
        else:
            y = kernel_attention.mix_features(x, kernels, weights, self.stride, view.pads, self.groups)
        if self.use_bias:
            biases = self.param("biases", nn.initializers.zeros_init(), (self.count, self.features), jnp.float32)
            y = y + kernel_attention.aggregate(weights, biases.astype(dtype))[:, None, None]
        return y[:, 0] if sequence else y

    def own_multiply_adds(self, x: Images, y: Images) -> int:
        """Multiply-adds of one image beside those of the head, in the form that is taken."""
        view, channels = self._window(x.shape), x.shape[-1]
        return self._costs(view, channels)[self._aggregates(view, channels)]

    def breaks_shifts(self, x: Images) -> str:
        """See :func:`shuffle_jax.nn.convolution.breaks_shifts`."""
        return breaks_shifts(self.kernel_size, self.stride, self.padding)

    scale_outputs = staticmethod(scale_outputs)

    def _weights(self, mean: Float[Array, "n c"]) -> Float[Array, "n k"]:
        raise NotImplementedError("KernelAttention is what layers share: use CondConv or DYConv")

    def _start(self, key: Key, shape: tuple[int, ...]) -> Float[Array, "k kh kw i o"]:
        return jax.vmap(lambda one: in_float32(self.kernel_init)(one, shape[1:]))(jax.random.split(key, shape[0]))

    def _aggregates(self, view: Window, channels: int) -> bool:
        if self.form in ("features", "kernels"):
            return self.form == "kernels"
        in_features, with_kernels = self._costs(view, channels)
        return with_kernels < in_features

    def _costs(self, view: Window, channels: int) -> tuple[int, int]:
        sizes = view.size, channels, self.features, self.groups
        return kernel_attention.multiply_adds(view.positions[1], *sizes, self.count, self.use_bias)

    def _window(self, shape: tuple[int, ...]) -> Window:
        return window(shape[1:-1], self.kernel_size, self.stride, self.padding)


class CondConv(KernelAttention):
    """A sum of kernels, each as much as a sigmoid says: ``r = sigmoid(R mean(x) + b)``.

    The head is one dense layer. The published networks share one among the layers of a unit; here each has its own.

    Attributes:
        count: K, the number of kernels, 8 in the paper's main results.

    The others are those of :class:`KernelAttention`.

    Source: Yang, Bender, Le and Ngiam, CondConv, 2019.
    """

    count: int = 8

    def _weights(self, mean: Float[Array, "n c"]) -> Float[Array, "n k"]:
        return nn.sigmoid(nn.Dense(self.count, kernel_init=self.head_init, name="generator")(mean))


class DYConv(KernelAttention):
    """A mean of kernels by attention: ``r = softmax((W2 relu(W1 mean(x) + b1) + b2) / T)``.

    High temperatures make all weights nearly 1 / K, so that every kernel learns from the start. T falls linearly over
    the first part of the training, and stays; a network that is finished has its last value. The paper's are K = 4,
    W1 to a quarter of the channels, and T from 30 to 1 in the first 10 epochs; the share of the training, the biases of
    the head and the hidden units that are never fewer than 4 are this project's. To fall, T needs a training step
    that says how far it is, see :data:`shuffle_jax.nn.collections.PROGRESS`; without, it has its last value.

    Attributes:
        hidden: width of the hidden layer; ``max(4, c / 4)`` by default (None).
        temperature: T at the start, above 0.
        end_temperature: T at the end, above 0; None for one that never changes.
        annealing: share of the training after which T is at its end, above 0 and at most 1.

    The others are those of :class:`KernelAttention`.

    Source: Chen, Dai, Liu, Chen, Yuan and Liu, Dynamic Convolution: Attention over Convolution Kernels, 2020.
    """

    hidden: int | None = None
    temperature: float = 30.0
    end_temperature: float | None = 1.0
    annealing: float = 0.1

    def _weights(self, mean: Float[Array, "n c"]) -> Float[Array, "n k"]:
        hidden = self.hidden if self.hidden is not None else max(4, mean.shape[-1] // 4)
        temperatures = self.temperature, self.end_temperature, self.annealing
        return Attention(self.count, hidden, *temperatures, self.head_init, name="generator")(mean)


class Attention(nn.Module):
    """The head of :class:`DYConv`, whose fields these are."""

    count: int
    hidden: int
    temperature: float
    end_temperature: float | None
    annealing: float
    head_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, mean: Float[Array, "n c"]) -> Float[Array, "n k"]:
        """Maps means to weights that sum to 1.

        Raises:
            ValueError: no hidden units, or a temperature or share out of range.
        """
        check_positive(hidden=self.hidden, temperature=self.temperature, end_temperature=self.end_temperature)
        if not 0 < self.annealing <= 1:
            raise ValueError(f"annealing must be above 0 and at most 1, got {self.annealing}")
        h = nn.relu(nn.Dense(self.hidden, kernel_init=self.head_init, name="hidden")(mean))
        logits = nn.Dense(self.count, kernel_init=self.head_init, name="logits")(h)
        return softmax_rows(logits, self._temperature())

    def _temperature(self) -> float | Float[Array, ""]:
        if self.end_temperature is None:
            return self.temperature
        done = jnp.minimum(training_progress(self) / self.annealing, 1)
        return self.temperature + (self.end_temperature - self.temperature) * done
