"""How much is measured: rounds, and until when."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

Times = dict[str, list[float]]
"""Seconds of each candidate in each round."""


class OutOfTime(Exception):
    """The minutes are over, in the middle of a table."""


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: of each table.
        ends: when it is over, on the clock of ``time.monotonic``.
    """

    rounds: int
    ends: float = math.inf

    def left(self) -> float:
        """Seconds that are left.

        Raises:
            OutOfTime: none are.
        """
        seconds = self.ends - time.monotonic()
        if seconds <= 0:
            raise OutOfTime
        return seconds
