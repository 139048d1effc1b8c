"""What a convolution has learned: ranks, conditions and knowledge gain of its kernel, on the host in float64.

A kernel is a matrix from each of its sides: a row for each input channel, for each output channel, for each tap of its
window. Of a matrix of noise and signal, the empirical variational Bayes solution of its factorisation tells the
singular values of the signal: how many there are, and how far apart, says how much of a layer's width is used.

Source: Hosseini et al., CONet, ICCVW 2021, arXiv 2108.06822; Nakajima et al., Global analytic solution of
fully-observed variational Bayesian matrix factorization, JMLR 2013.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from shuffle_jax.typing import Float

POINTS = 64
"""Of a grid on which the noise is looked for; each of the next begins and ends beside the best of the one before."""

EDGE = 2.5129
"""tau of a square matrix over its size's square root, from which a singular value is signal."""


LEAST = 1e-7
"""Of a singular value over the largest: below it are the roundings of weights in float32."""


class Side(NamedTuple):
    """A kernel from one side.

    Attributes:
        rank: singular values of the signal over the rows, in [0, 1].
        condition: the largest over the smallest of them, from 1; 0 where there are none.
        gain: S, their sum over the largest and the rows, in [0, 1].
    """

    rank: float
    condition: float
    gain: float


class Knowledge(NamedTuple):
    """A kernel from its sides; None for a side of one row, which has no rank to speak of.

    Attributes:
        inputs: a row for each input channel; none of a depthwise kernel.
        outputs: a row for each output channel.
        window: a row for each tap; none of a 1x1 kernel.
    """

    inputs: Side | None
    outputs: Side | None
    window: Side | None

    @property
    def gain(self) -> float:
        """S, the mean of inputs and outputs, where there are both."""
        found = [side.gain for side in (self.inputs, self.outputs) if side is not None]
        return float(np.mean(found)) if found else 0.0

    def numbers(self) -> dict[str, float]:
        """Gain, ranks and conditions, as the records of a run have them; see :meth:`read`."""
        found = {"gain": self.gain}
        for name in ("inputs", "outputs", "window"):
            if (side := getattr(self, name)) is not None:
                found |= {f"{name}_{what}": value for what, value in side._asdict().items()}
        return found

    @classmethod
    def read(cls, numbers: Mapping[str, float]) -> Knowledge:
        """The inverse of :meth:`numbers`; other entries do not matter."""
        sides = {
            name: Side(*(float(numbers[f"{name}_{what}"]) for what in Side._fields))
            for name in cls._fields
            if f"{name}_rank" in numbers
        }
        return cls(**{name: sides.get(name) for name in cls._fields})


def signal(matrix: Float[np.ndarray, "l m"]) -> Float[np.ndarray, " k"]:
    """The singular values of the signal in a matrix with noise, falling; none in noise alone.

    With ``L <= M`` rows and columns, ``alpha = L / M``, ``t = 2.5129 sqrt(alpha)``, ``x^ = (1 + t)(1 + alpha / t)`` and
    ``x_h = s_h^2 / (M sigma^2)``, the noise is::

        sigma^2 = argmin  sum_{x_h > x^} (x_h - T_h + ln((T_h + 1) / x_h) + alpha ln(T_h / alpha + 1))
                        + sum_{x_h <= x^} (x_h - ln x_h)
        T_h = (x_h - (1 + alpha) + sqrt((x_h - (1 + alpha))^2 - 4 alpha)) / 2

    and of each ``s_h`` with ``x_h > x^`` there is left ``d_h = s_h / 2 (1 - (L + M) sigma^2 / s_h^2 + sqrt((1 - (L + M)
    sigma^2 / s_h^2)^2 - 4 L M sigma^4 / s_h^4))``. The minimum is found to eight digits whatever the scale, so that the
    result of a multiple is the multiple.

    Args:
        matrix: of any shape and scale.

    Raises:
        ValueError: it is no matrix, or not finite.

    >>> signal(np.outer([1.0, 2.0, 2.0], [3.0, 4.0])).round(6)
    array([15.])
    """
    y = np.asarray(matrix, np.float64)
    if y.ndim != 2 or not np.isfinite(y).all():
        raise ValueError(f"a matrix of finite numbers has a signal, got one of shape {y.shape}: check the weights")
    scale = np.sqrt(np.mean(y**2)) if y.size else 0.0
    if scale == 0:
        return np.zeros(0)
    y = (y if y.shape[0] <= y.shape[1] else y.T) / scale
    rows, columns = y.shape
    # By inner products, which takes a twentieth of the time of a decomposition of the kernel itself.
    squares = np.linalg.eigvalsh(y @ y.T)[::-1]
    s = np.sqrt(np.maximum(squares, squares[0] * LEAST**2))
    alpha = rows / columns
    edge = EDGE * np.sqrt(alpha)
    least = (1 + edge) * (1 + alpha / edge)

    def energy(noise: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
        x = s**2 / (columns * noise[:, None])
        high = np.maximum(x, least)
        z = high - (1 + alpha)
        t = (z + np.sqrt(z**2 - 4 * alpha)) / 2
        above = high - t + np.log((t + 1) / high) + alpha * np.log(t / alpha + 1)
        return np.where(x > least, above, x - np.log(x)).sum(-1)

    most = min(int(np.ceil(rows / (1 + alpha))) - 1, rows)
    low = max(s[most] ** 2 / (columns * least), np.mean(s[most:] ** 2) / columns)
    noise = _lowest(energy, low, max(low, np.sum(s**2) / (rows * columns)))
    s = s[s > np.sqrt(columns * noise * least)]
    part = 1 - (rows + columns) * noise / s**2
    return scale * s / 2 * (part + np.sqrt(part**2 - 4 * rows * columns * noise**2 / s**4))


def knowledge(kernel: Float[np.ndarray, "kh kw i o"], groups: int = 1) -> Knowledge:
    """What a convolution has learned, from the three sides of its kernel.

    A grouped kernel is one for each group, and the numbers are their means: this project's own, as is that a side of
    one row has none.

    Args:
        kernel: HWIO, of any scale.
        groups: of the convolution; 1 also for a depthwise one, whose channels are then its rows.

    Raises:
        ValueError: the kernel has not four axes, is not finite, or the groups do not divide its outputs.

    >>> taps, channels = np.ones((3, 3, 1, 1)), np.diag([1.0, 1.0, 0.0, 0.0])
    >>> knowledge(taps * channels)
    Knowledge(inputs=Side(rank=0.5, condition=1.0, gain=0.5), outputs=Side(rank=0.5, condition=1.0, gain=0.5),
              window=Side(rank=0.111, condition=1.0, gain=0.111))
    """
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim != 4 or kernel.shape[-1] % groups:
        raise ValueError(
            f"a kernel must be HWIO with a multiple of {groups} outputs, as it has as many groups, got {kernel.shape}"
        )
    height, width, inputs, outputs = kernel.shape
    parts = np.split(kernel, groups, axis=-1)
    flat = [part.reshape(height * width, -1) for part in parts]
    # The window's matrix is that of the taps' inner products, whose singular values are squares of the taps' own.
    return Knowledge(
        _side([part.transpose(2, 0, 1, 3).reshape(inputs, -1) for part in parts]),
        _side([part.transpose(3, 0, 1, 2).reshape(outputs // groups, -1) for part in parts]),
        _side([taps @ taps.T for taps in flat], np.sqrt),
    )


def _side(matrices: Sequence[Float[np.ndarray, "l m"]], root: Callable[..., np.ndarray] = np.asarray) -> Side | None:
    """The means over matrices of as many rows; None for one row."""
    rows = len(matrices[0])
    if rows == 1:
        return None
    found = []
    for matrix in matrices:
        d = root(signal(matrix))
        found.append((len(d) / rows, d[0] / d[-1] if len(d) else 0.0, np.sum(d / d[0]) / rows if len(d) else 0.0))
    return Side(*np.mean(found, axis=0).tolist())


def _lowest(function: Callable[[np.ndarray], np.ndarray], low: float, high: float) -> float:
    """Where a function on [low, high] is least, to the half of its digits that a minimum has."""
    grid = np.geomspace(low, high, POINTS)
    while grid[-1] - grid[0] > 1e-9 * grid[-1]:
        best = int(np.argmin(function(grid)))
        around = grid[max(best - 1, 0)], grid[min(best + 1, POINTS - 1)]
        grid = np.geomspace(*around, POINTS)
    return float(grid[np.argmin(function(grid))])
