"""Dynamic convolution by decomposition: a static kernel, scaled and corrected for each image through a latent space."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from shuffle_jax.nn.coefficients import Coefficients
from shuffle_jax.nn.convolution import breaks_shifts, fan_out_init, in_float32
from shuffle_jax.nn.limits import check_positive
from shuffle_jax.nn.normalization import BatchNorm, absorbed
from shuffle_jax.nn.window import Window, window
from shuffle_jax.ops import convolution, dynamic_conv, per_sample
from shuffle_jax.ops.barrier import computed_once
from shuffle_jax.ops.convolution import Padding
from shuffle_jax.ops.permutation import check_groups
from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.typing import Array, Float, Images, PyTree

Form = Literal["auto", "fewest", "features", "kernels"]
"""What evaluation computes: two features and their sum, a kernel for each image, or what takes fewer multiply-adds.

"fewest" is the last. "auto" is that for 1x1 kernels, and features for larger ones: there a kernel for each image can
take fewer, but needs every patch written out. In layers of ResNet-18 with 32 images it took 3.5 to 18 times as long as
the static convolution on two CPU cores, features 0.9 to 1.5 times.
"""


class Sizes(NamedTuple):
    """How large the dynamic part of a layer is.

    Attributes:
        pool: bins along each axis of positions of what the head sees.
        latent: L.
        hidden: s, the width of the head.
    """

    pool: int
    latent: int
    hidden: int


Rule = Callable[[int, int, int], Sizes]
"""From the channels in, the channels out and ``squeeze`` to the sizes of a layer."""


def default_sizes(channels: int, features: int, squeeze: int = 16) -> Sizes:
    """The sizes of a layer that is told nothing else: those of the 1x1 layers of the published MobileNetV2.

    A layer that widens sees 2 x 2 bins and has up to an eighth as many latent channels, another sees the mean and has
    up to half as many: fewer, where the square of their number is above twice what is seen.

    Args:
        channels: in.
        features: out.
        squeeze: divides the width of the head.

    >>> default_sizes(24, 144)
    Sizes(pool=2, latent=12, hidden=9)
    """
    pool, ratio = (2, 8) if channels < features else (1, 2)
    seen = channels * pool**2
    while (latent := min(seen // ratio, features // ratio)) ** 2 > 2 * seen:
        ratio *= 2
    latent = max(4, latent)
    return Sizes(pool, latent, max(4, max(seen, latent**2) // squeeze))


class DynamicConv(nn.Module):
    """A convolution whose kernel is ``W(x) = Lambda(x) W0 + P Phi(x) Q^T`` for each image x.

    ``y = lambda (x * W0 + b) + P (N2(Phi q) + q)``, ``q = N1(x * Q)``, see :mod:`shuffle_jax.ops.dynamic_conv`. Q sees
    the pixel in the middle of the window: of a k x k kernel this element alone is corrected, as in the published
    networks. With ``elements`` E, ``W(x) = Lambda(x) W0 + sum_e R_e P Phi_e(x) Q^T`` corrects all, by learned k x k R.
    With ``blocks`` B, Q, Phi and P are block-diagonal: a sparse residual of 1 / B of the size.

    Training adds features, for N1 and N2 need their statistics; their running variances average the unbiased variances
    of the batches. Evaluation does the same, or makes a kernel for each image: the same function and gradient.

    Phi q is a product of two things that grow with the image, and N2 is what keeps it small. So a deep network can
    overflow in evaluation as long as its running statistics are far from those of the data: at the start, and without a
    warm-up of the learning rate for some steps after it.

    It takes the place of :class:`shuffle_jax.nn.convolution.PointwiseConv` (with the default kernel size) and of
    :class:`shuffle_jax.nn.convolution.Conv`. Memory for each image is that of the latent features, or of one kernel.

    Attributes:
        features: output channels.
        kernel_size: k of a square window, or one number for each axis.
        stride: the same for all axes.
        padding: zeros before and after each axis, ``k // 2`` by default (None); "wrap": as many of the opposite side.
        groups: of the static kernel, a divisor of the channels in and out.
        rule: gives the sizes of the dynamic part, called as ``rule(channels, features, squeeze)``; see also
            ``shuffle_jax.models.decomposition``.
        squeeze: divides the width of the head: 8 or 16 in the published MobileNetV2, 16 in ResNet.
        pool: bins along each axis, in place of the rule's.
        latent: L, in place of the rule's (a multiple of the blocks); at most the channels in.
        hidden: s, the width of the head, in place of the rule's.
        blocks: B, of the residual, which see nothing of each other: a multiple of ``groups`` that divides L
            and the channels; ``groups`` by default (None).
        elements: E, the factors over the elements of k x k kernels, or 0 for the element in the middle alone.
        use_bias: adds a learned constant, which lambda scales too.
        form: what evaluation computes: two "features" and their sum, "kernels" for each image, what takes the "fewest"
            multiply-adds, or "auto" for that in 1x1 layers and features in others, see :data:`Form`.
        kernel_init: of W0, P and Q.
        head_init: of the head.
        dtype: type of the computation; that of the input by default. Parameters, head and lambda are float32.

    Source: Li et al., Revisiting Dynamic Convolution via Matrix Decomposition, 2021.
    """

    features: int
    kernel_size: int | tuple[int, ...] = 1
    stride: int = 1
    padding: tuple[tuple[int, int], ...] | Padding | None = None
    groups: int = 1
    rule: Rule = default_sizes
    squeeze: int = 16
    pool: int | None = None
    latent: int | None = None
    hidden: int | None = None
    blocks: int | None = None
    elements: int = 0
    use_bias: bool = False
    form: Form = "auto"
    kernel_init: nn.initializers.Initializer = fan_out_init
    head_init: nn.initializers.Initializer = nn.initializers.normal(0.01)
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n *space c"], train: bool = False) -> Float[Array, "n *out o"]:
        """Maps ``(n, h, w, c)`` to ``(n, oh, ow, features)``, or ``(n, l, c)`` to ``(n, ol, features)``.

        Raises:
            ValueError: sizes that do not fit the channels or each other.
        """
        pool, latent, hidden = self._sizes(x.shape[-1])
        channels, blocks, copies = x.shape[-1], self._blocks, max(self.elements, 1)
        shape = copies, blocks, latent // blocks, latent // blocks
        x = computed_once(lambda x: x, x)
        seen = dynamic_conv.adaptive_mean(at_least_float32(x), pool)
        gate, phi = Coefficients(hidden, self.features, shape, self.head_init, name="generator")(seen)

        dtype, sequence, view = self.dtype or x.dtype, x.ndim == 3, self._window(x.shape)
        x = x.reshape(x.shape[0], *view.image, channels).astype(dtype)
        shapes = {
            "kernel": (*view.size, channels // self.groups, self.features),
            "q": (1, 1, channels // blocks, latent),
            "p": (1, 1, latent // blocks, self.features),
        }
        kernel, q, p = (self.param(name, in_float32(self.kernel_init), shape) for name, shape in shapes.items())
        elements = bias = None
        if self.elements:
            elements = self.param("r", nn.initializers.lecun_normal(), (*view.size, self.elements), jnp.float32)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        norm1, norm2 = BatchNorm(unbiased=True, name="norm1"), BatchNorm(unbiased=True, name="norm2")

        if not train and not self.is_initializing() and self._synthesises(view, channels):
            affines = norm1.affine(copies * latent), norm2.affine(latent)
            rows = dynamic_conv.synthesise(kernel, gate, phi, q, p, *affines, elements, bias).astype(dtype)
            y = per_sample.affine(x, rows, view.size, self.stride, view.pads, self.groups)
        else:
            kernel, q, p, gate, phi = (a.astype(dtype) for a in (kernel, q, p, gate, phi))
            elements = None if elements is None else elements.astype(dtype)
            y = convolution.convolution(x, kernel, self.stride, view.pads, self.groups)
            y = y if bias is None else y + bias.astype(dtype).reshape(1, 1, 1, -1)
            latents = norm1(dynamic_conv.latents(x, q, view.size, self.stride, view.pads, blocks, elements), train)
            identity = latents.reshape(*latents.shape[:-1], copies, latent).sum(-2)
            fused = norm2(dynamic_conv.fuse(latents, phi), train) + identity
            y = y * gate[:, None, None] + convolution.pointwise(fused, p, blocks)
        return y[:, 0] if sequence else y

    def own_multiply_adds(self, x: Images, y: Images) -> int:
        """Multiply-adds of one image beside those of the head, in the form that evaluation takes."""
        view, channels = self._window(x.shape), x.shape[-1]
        return self._costs(view, channels)[self._synthesises(view, channels)]

    def breaks_shifts(self, x: Images) -> str:
        """See :func:`shuffle_jax.nn.convolution.breaks_shifts`."""
        pool = self._sizes(x.shape[-1]).pool
        parts = f"sees the image in {pool} x {pool} parts" if pool > 1 else ""
        return parts or breaks_shifts(self.kernel_size, self.stride, self.padding)

    @staticmethod
    def scale_outputs(variables: dict[str, PyTree], scale: Float[np.ndarray, " o"]) -> dict[str, PyTree]:
        """The variables with which the layer gives ``scale`` times its outputs, N1 and N2 absorbed where they can be.

        W0, the bias and P are scaled. N1 goes into Q and leaves its shift, unless E copies share Q. The scale of N2
        goes into the rows of Phi, that is into the head that makes it, and its shift is left.
        """
        own, statistics = variables["params"], dict(variables.get("batch_stats", {}))
        params = {**own, **{name: np.asarray(own[name], np.float64) * scale for name in ("kernel", "p")}}
        if "bias" in own:
            params["bias"] = np.asarray(own["bias"], np.float64) * scale
        latent, size = own["q"].shape[-1], own["p"].shape[2]
        copies, blocks = len(own["norm1"]["bias"]) // latent, latent // size
        if copies == 1 and "norm1" in statistics:
            scale1, shift1 = absorbed(own["norm1"], statistics.pop("norm1"))
            params |= {"q": np.asarray(own["q"], np.float64) * scale1, "norm1": {"bias": shift1}}
        if "norm2" in statistics:
            scale2, shift2 = absorbed(own["norm2"], statistics.pop("norm2"))
            rows = np.broadcast_to(scale2.reshape(blocks, size, 1), (copies, blocks, size, size)).ravel()
            fusion = np.asarray(own["generator"]["fusion"]["kernel"], np.float64) * rows
            params |= {"generator": {**own["generator"], "fusion": {"kernel": fusion}}, "norm2": {"bias": shift2}}
        return {**variables, "params": params, "batch_stats": statistics}

    def _synthesises(self, view: Window, channels: int) -> bool:
        if self.form in ("features", "kernels"):
            return self.form == "kernels"
        if self.form == "auto" and math.prod(view.size) > 1:
            return False
        in_features, with_kernels = self._costs(view, channels)
        return with_kernels < in_features

    def _costs(self, view: Window, channels: int) -> tuple[int, int]:
        latent = self.elements, self._blocks, self._sizes(channels).latent
        return dynamic_conv.multiply_adds(view.positions, view.size, channels, self.features, self.groups, latent)

    def _window(self, shape: tuple[int, ...]) -> Window:
        return window(shape[1:-1], self.kernel_size, self.stride, self.padding)

    @property
    def _blocks(self) -> int:
        return self.groups if self.blocks is None else self.blocks

    def _sizes(self, channels: int) -> Sizes:
        """Those of the rule, or those given, checked."""
        check_positive(squeeze=self.squeeze)
        if self.elements < 0:
            raise ValueError(f"elements must be 0 or more, got {self.elements}")
        for name, count in (("channels", channels), ("features", self.features)):
            check_groups(count, self.groups)
            if self._blocks < 1 or self._blocks % self.groups or count % self._blocks:
                raise ValueError(
                    f"{self._blocks} blocks do not fit {count} {name} in {self.groups} groups: choose a multiple of "
                    f"the groups that divides the {name}"
                )
        rule = self.rule(channels, self.features, self.squeeze)
        given = (self.pool, self.latent, self.hidden)
        own = min(max(rule.latent // self._blocks, 1), channels // self._blocks)  # of a block
        rule = rule._replace(latent=own * self._blocks)
        chosen = Sizes(*(a if b is None else b for a, b in zip(rule, given, strict=True)))
        check_positive(**chosen._asdict())
        if chosen.latent > channels or chosen.latent % self._blocks:
            raise ValueError(
                f"{chosen.latent} latent channels in {self._blocks} blocks do not fit {channels} channels: set latent "
                f"to a multiple of {self._blocks}, at most {channels}"
            )
        return chosen


class DynamicDense(nn.Module):
    """A dense layer by the same decomposition, for the pooled features that a classifier sees.

    :class:`DynamicConv` at one position, with a bias: ``y = lambda (W0 x + b) + P (N2(Phi q) + q)``.

    Attributes:
        features: number of logits.
        latent: L, the number of latent channels; all of the input's where there are fewer.
        hidden: s, the width of the head.
        kernel_init: of W0, P and Q.
        head_init: of the head.

    Source: as :class:`DynamicConv`.
    """

    features: int
    latent: int = 32
    hidden: int = 32
    kernel_init: nn.initializers.Initializer = nn.initializers.normal(0.01)
    head_init: nn.initializers.Initializer = nn.initializers.normal(0.01)

    @nn.compact
    def __call__(self, x: Float[Array, "n c"], train: bool = False) -> Float[Array, "n o"]:
        """Maps ``(n, c)`` to ``(n, features)``."""
        layer = DynamicConv(
            self.features,
            pool=1,
            latent=min(self.latent, x.shape[-1]),
            hidden=self.hidden,
            use_bias=True,
            kernel_init=self.kernel_init,
            head_init=self.head_init,
            name="layer",
        )
        return layer(x[:, None], train)[:, 0]
