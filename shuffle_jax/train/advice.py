"""What a person is told of permutations: that a training is short for them, what hardening cost, what does nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from shuffle_jax.analysis.dynamic_use import DynamicUse, Results
from shuffle_jax.analysis.shift_consistency import in_words
from shuffle_jax.deploy.hardening import Diagnosis
from shuffle_jax.models import NetworkConfig
from shuffle_jax.models.options import options
from shuffle_jax.models.parts import KINDS
from shuffle_jax.train.config import TrainConfig
from shuffle_jax.train.optimizer import penalty_weight

LOSS = 0.01
"""Top-1 accuracy that hardening may cost without a word, and share of the images that may have no permutation."""

FEWEST = 40
"""Steps below which no weight that was tried brings every relaxed matrix to a permutation, see docs/results."""

HARD = ("dynamic_hard", "static_dynamic_hard")
"""Parts whose permutations hardly move, beside those of the same name without the end."""

NAMED = 3
"""Layers that are named; the others are counted."""


def before(config: TrainConfig, steps: int, per_epoch: int, permutations: int) -> list[str]:
    """What to expect: what a short training changes, whether it can learn permutations, when its evaluations count.

    Args:
        config: of the run.
        steps: of the whole training.
        per_epoch: steps of an epoch.
        permutations: relaxed ones of the network.

    Returns:
        Lines; none for a training that is long enough and has no layers that are soft at first.
    """
    lines = []
    if soft := _soft_until(config.network):
        lines.append(
            f"dynamic layers are soft in training until epoch {soft * config.epochs:.3g} and hard in evaluation: until "
            "then its accuracies may be those of chance"
        )
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


def of_shifts(breakers: Mapping[str, Sequence[str]]) -> list[str]:
    """What keeps a network that samples by its images from following every circular shift of them.

    Args:
        breakers: layers by reason, as :func:`shuffle_jax.analysis.shift_consistency.shift_breakers` finds them.

    Returns:
        One line; none without such layers.
    """
    if not breakers:
        return []
    return [f"not every circular shift of an image leaves the logits as they are ({in_words(breakers)})"]


def _soft_until(network: NetworkConfig) -> float:
    """Share of the training during which layers that the configuration names are soft and evaluated hard."""
    found = [0.0]
    for kind, name in network.parts().items():
        make, _, group = KINDS[kind].get(name, (None, "", ""))
        own = options(kind, make) if make is not None and (group or name) == "dynamic" else {}
        if "binarize_from" in own and network.dynamic.evaluation != "soft":
            given = network.dynamic.binarize_from
            found.append(own["binarize_from"].default if given is None else given)
    return max(found)


def after(
    config: TrainConfig,
    diagnoses: Mapping[str, Diagnosis],
    results: Results | None = None,
    dynamic: DynamicUse | None = None,
) -> list[str]:
    """What hardening lost, and what dynamic layers lack, with what to change.

    Args:
        config: of the run.
        diagnoses: of each learned permutation by layer.
        results: ``top1`` of each form of the network, where they were evaluated.
        dynamic: what its dynamic layers do, if it has any.

    Returns:
        A line for layers that are not certified and the accuracy lost by hardening, one for images without a
        permutation, and one for layers that are all static in effect; none where all is well.
    """
    of_dynamic = _of_dynamic(config, dynamic, results or {}) if dynamic is not None else []
    return [*_of_hardening(config, diagnoses, results or {}), *of_dynamic]


def _of_hardening(config: TrainConfig, diagnoses: Mapping[str, Diagnosis], results: Results) -> list[str]:
    if not diagnoses:
        return []
    loose = [layer for layer, found in diagnoses.items() if not found.certified]
    relaxed, hard = (results.get(name, {}).get("top1", 0.0) for name in ("relaxed", "hardened"))
    found = []
    if relaxed - hard > LOSS:
        found.append(f"hardening loses {100 * (relaxed - hard):.1f} points of top-1 ({relaxed:.1%} to {hard:.1%})")
    if loose:
        more = f" and {len(loose) - NAMED} more" if len(loose) > NAMED else ""
        layers = f"{', '.join(loose[:NAMED])}{more}"
        found.append(f"{len(loose)} of {len(diagnoses)} learned permutations are not certified ({layers})")
    return [f"{' and '.join(found)}: {_remedy(config, bool(loose))}"] if found else []


def _of_dynamic(config: TrainConfig, use: DynamicUse, results: Results) -> list[str]:
    parts = config.network.parts()
    lines = []
    if use.invalid > LOSS:
        own, repaired = (results.get(name, {}).get("top1", 0.0) for name in ("relaxed", "repaired"))
        better = f", or repair it, --network.dynamic.evaluation repaired ({repaired:.1%} in place of {own:.1%})"
        repair = better if repaired > own else ""
        lines.append(
            f"the row-argmax is no permutation for {use.invalid:.1%} of the images: train longer (--epochs), or raise "
            f"the regulariser's weight, --penalty.weight {_heavier(config)}{repair}"
        )
    if use.counts and use.static == len(use.counts):
        hard = [f"--network.{kind} {name.removesuffix('_hard')}" for kind, name in parts.items() if name in HARD]
        remedy = f"{' '.join(hard)} starts soft and lets them part" if hard else "train longer (--epochs)"
        lines.append(f"every image has the same permutations: {remedy}")
    return lines


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
    return (
        f"train longer (--epochs), or if that was long raise the penalty's weight, --penalty.weight {_heavier(config)}"
    )


def _heavier(config: TrainConfig) -> str:
    """A weight of the penalties to try after that of a run."""
    return f"{3 * config.penalty.weight or 0.1:.3g}"
