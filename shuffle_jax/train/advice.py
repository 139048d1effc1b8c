"""What a person is told of learned permutations: that a training is short for them, and what hardening cost."""

from __future__ import annotations

import math
from collections.abc import Mapping

from shuffle_jax.deploy.harden import Diagnosis
from shuffle_jax.train.config import TrainConfig
from shuffle_jax.train.optimizer import penalty_weight

LOSS = 0.01
"""Top-1 accuracy that hardening may cost without a word."""

FEWEST = 40
"""Steps below which no weight that was tried brings every relaxed matrix to a permutation, see docs/results."""

NAMED = 3
"""Layers that are named; the others are counted."""


def before(config: TrainConfig, steps: int, per_epoch: int, permutations: int) -> list[str]:
    """What a short training changes of what was asked for, and whether its permutations can be learned at all.

    Args:
        config: of the run.
        steps: of the whole training.
        per_epoch: steps of an epoch.
        permutations: relaxed ones of the network.

    Returns:
        Lines; none for a training that is long enough.
    """
    lines = []
    wanted, most = round(config.optimizer.warmup_epochs * per_epoch), round(config.optimizer.warmup_share * steps)
    if wanted > most and config.optimizer.warmup_share < 1:  # one that is not shortened is refused
        lines.append(
            f"the warm-up takes {most:,} step{'' if most == 1 else 's'}, {config.optimizer.warmup_share:.0%} of the "
            f"training, and not {wanted:,}: --optimizer.warmup-share sets the share"
        )
    if not permutations:
        return lines
    if config.penalty.for_steps > steps:
        within = f"in {steps:,} steps" if steps >= FEWEST else "sooner"
        lines.append(
            f"the penalty's weight is {float(penalty_weight(config.penalty, steps)(steps)):.3g} in place of "
            f"{config.penalty.weight:g}, so that permutations are reached {within}: --penalty.for-steps 0 leaves it as "
            "it is"
        )
    if steps < FEWEST:
        few = f"{steps} step{' is' if steps == 1 else 's are'} too few to learn permutations"
        lines.append(
            f"{few}, hardening may lose what was learned: train {FEWEST} steps or more, --epochs "
            f"{math.ceil(FEWEST / per_epoch)}, or choose --network.mixer shuffle"
        )
    return lines


def after(
    config: TrainConfig, diagnoses: Mapping[str, Diagnosis], results: Mapping[str, Mapping[str, float]] | None = None
) -> list[str]:
    """What hardening lost: layers that are not certified, and accuracy, with what to change.

    Args:
        config: of the run.
        diagnoses: of each learned permutation by layer.
        results: ``top1`` of the network "relaxed" and "hardened", where it was evaluated.

    Returns:
        At most one line; none where all is well.
    """
    if not diagnoses:
        return []
    loose = [layer for layer, found in diagnoses.items() if not found.certified]
    relaxed, hard = (((results or {}).get(name) or {}).get("top1", 0.0) for name in ("relaxed", "hardened"))
    found = []
    if relaxed - hard > LOSS:
        found.append(f"hardening loses {100 * (relaxed - hard):.1f} points of top-1 ({relaxed:.1%} to {hard:.1%})")
    if loose:
        more = f" and {len(loose) - NAMED} more" if len(loose) > NAMED else ""
        layers = f"{', '.join(loose[:NAMED])}{more}"
        found.append(f"{len(loose)} of {len(diagnoses)} learned permutations are not certified ({layers})")
    return [f"{' and '.join(found)}: {_remedy(config, bool(loose))}"] if found else []


def _remedy(config: TrainConfig, loose: bool) -> str:
    """What brings matrices nearer to permutations, or fits the network to those that it has."""
    penalty = config.penalty
    if not loose:
        return (
            f"let the penalty rise sooner, --penalty.end {penalty.end / 2:g}, or re-estimate the batch statistics, "
            "--recalibrate 20"
        )
    if config.optimizer.constraint == "one_pass":
        return (
            "one pass of normalisation can get stuck: take --optimizer.constraint balance, or train longer (--epochs)"
        )
    heavier = 3 * penalty.weight if penalty.weight else 0.1
    return f"train longer (--epochs), or if that was long raise the penalty's weight, --penalty.weight {heavier:.3g}"
