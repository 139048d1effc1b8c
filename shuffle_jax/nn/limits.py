"""What a layer says when it is given a number that it cannot take."""

from __future__ import annotations


def check_positive(**values: float | None) -> None:
    """Raises a ValueError unless all values are above 0; None stands for a default.

    >>> check_positive(temperature=1.0, hidden=None)
    """
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def check_fraction(**values: float) -> None:
    """Raises a ValueError unless all values are from 0 to 1.

    >>> check_fraction(binarize_from=0.5)
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {value}")
