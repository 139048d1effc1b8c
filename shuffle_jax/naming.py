"""How a message of one line names many things."""

from __future__ import annotations

from collections.abc import Iterable

MOST = 10
"""Names in one message."""


def some(names: Iterable[object], most: int = MOST) -> str:
    """The first of some names, and how many there are more.

    >>> some("abcd", most=2)
    'a, b and 2 more'
    >>> some(range(3))
    '0, 1, 2'
    """
    texts = [str(name) for name in names]
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
