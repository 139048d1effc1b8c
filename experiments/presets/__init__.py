"""Complete configurations, by name: data times networks times recipes.

Each is a function, whose docstring says what to expect of it: what other options make of it, data, recipe, expected
result with its spread, cost and command. ``python -m experiments.train NAME --help`` shows it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from experiments.presets import data, networks, recipes
from experiments.presets.data import Data
from experiments.presets.networks import ADDRESSNET, AUTO, AUTO_V1, DYNAMIC, MOBILENET, RESNET, SHIFT_RESNET, Network
from experiments.presets.recipes import Recipe
from shuffle_jax.train.config import TrainConfig

Preset = Callable[[], TrainConfig]

RESULTS = "docs/results"
"""Where measured results are."""

_MINUTE = "about a minute on two CPU cores, compilation included."
_MINUTES = "a few minutes on two CPU cores, most of it compilation."
_SPEED = "about 300 images a second (200 to 420) at 64 x 64 pixels on two CPU cores."
_SLOWER = "not measured with this preset; a step takes longer than with the fixed shuffle, see ``make bench``."
_UNMEASURED, _NO_SEEDS = "not measured.", "not measured over seeds."
_DIGITS = (
    "98.3 to 99.2 % test accuracy over five seeds and splits (mean 98.6), the same hardened, with all 16 permutations "
    f"certified; with ``--network.mixer shuffle`` 97.5 to 98.9 % over five others (mean 98.3). See {RESULTS}."
)
_DIGITS_DYNAMIC = (
    "95.0, 93.9 and 93.9 % test accuracy with the seeds and splits 1, 2 and 3; with one permutation for all images "
    "71.9, 89.1 and 54.6 %. One or two of the 16 layers have one permutation for the 359 test images, the others 2 to "
    "16; 0.2, 0.1 and 0.5 % are none. So images have permutations of their own, and lose accuracy where nothing calls "
    "for them: with ``--network.mixer dynamic_hard``, which kept the fixed shuffle, it is 97.8 to 98.6 % over five "
    f"seeds and splits (mean 98.4). See {RESULTS}."
)
_OWN = "depends on the pictures. No result is claimed for this preset."
_OWN_DYNAMIC = (
    f"{_OWN} On a part of CIFAR-10 every image kept the fixed shuffle with ``dynamic_hard``, and ``dynamic`` lost 13 "
    f"points to it, see {RESULTS}."
)
_TENTH = f"not measured. On a tenth of the pictures, {{}}: {RESULTS}."
_KEPT = _TENTH.format(
    "at 0.5x, every image kept the fixed shuffle of ``dynamic_hard`` in 15 epochs, and ``dynamic`` lost 13 points to "
    "it in 10 epochs at 16 x 16"
)
_LAYERS = _TENTH.format("in 15 epochs and at 0.5x, ``static_dynamic_hard`` is compared with plain layers")
_CONVOLUTIONS = _TENTH.format("in 6 epochs and at 0.35x, static, dynamic and decomposed convolutions are compared")
_SHIFTS = _TENTH.format(
    "at 16 x 16 and in 10 epochs, the channel shift is compared with the shuffle, AddressNet with Enhanced AddressNet "
    "and ShiftResNet"
)
_CONTEXTUAL = _TENTH.format("at 16 x 16, an eighth of the width and in few epochs, it is compared with ResNet-50")
_PAPER_COCONV = (
    "not measured. The authors' are 77.27 % where ResNet-50 has 76.12 %, 78.71 and 78.00 % at depth 101, 79.03 and "
    "78.45 % at 152."
)
_SAMPLED = _TENTH.format("of a quarter of the width and 10 layers, in 6 epochs, it is compared with strides")
_SIZES = _TENTH.format("at 16 x 16 and in 5 epochs, sizes found for a ResNet-10 are compared with even ones")
_REGULATORS = _TENTH.format("at 16 x 16, in 4 epochs and with one kernel of 32 channels, its regulators are compared")
_PAPER = "not measured. The paper's is 71.96 % with the channel shift and 71.97 % with the shuffle."
_PAPER_DCD = (
    "not measured. The paper's at 0.5x with 3.1 M parameters is 70.2 %, as a note cites it, and 65.4 % of the static "
    "network."
)


class Row(NamedTuple):
    """One preset. Its counts are parameters, those more in training, and multiply-adds of one image."""

    network: Network
    recipe: Recipe
    counts: tuple[int, int, int] | str  # or in words what it costs
    expected: str = _UNMEASURED


_ROWS: dict[Data, dict[str, Row]] = {
    data.DIGITS: {
        "": Row(AUTO.of(width=0.5), recipes.DIGITS.permuting(), _MINUTE, _DIGITS),
        "-dynamic": Row(DYNAMIC.of(width=0.5), recipes.DIGITS.of_factors(), _MINUTES, _DIGITS_DYNAMIC),
        "-mobilenet": Row(MOBILENET.of(width=0.35), recipes.DIGITS, _MINUTES, _NO_SEEDS),
        "-resnet": Row(networks.SMALL_RESNET, recipes.DIGITS, _MINUTE, _NO_SEEDS),
        "-addressnet": Row(ADDRESSNET.of(depth=20), recipes.DIGITS, _MINUTE, _NO_SEEDS),
        "-shift-resnet": Row(SHIFT_RESNET, recipes.DIGITS, _MINUTE, _NO_SEEDS),
    },
    data.FOLDER: {
        "": Row(AUTO, recipes.FOLDER.permuting(), _SPEED, _OWN),
        "-dynamic": Row(DYNAMIC, recipes.FOLDER.of_factors(), _SLOWER, _OWN_DYNAMIC),
        "-mobilenet": Row(MOBILENET.of(width=0.5), recipes.FOLDER, _UNMEASURED, _OWN),
        "-resnet": Row(RESNET, recipes.FOLDER, _UNMEASURED, _OWN),
        "-addressnet": Row(networks.TABLE_ADDRESSNET, recipes.FOLDER, _UNMEASURED, _OWN),
    },
    data.SMALL_FOLDER: {"-shift-resnet": Row(SHIFT_RESNET, recipes.FOLDER, _UNMEASURED, _OWN)},
    data.CIFAR10: {
        "-auto": Row(AUTO, recipes.REFERENCE, (1_263_854, 1_345_600, 45_002_112)),
        "-auto-v1": Row(AUTO_V1, recipes.REFERENCE, (914_338, 360_000, 42_590_592)),
        "-dynamic": Row(DYNAMIC, recipes.REFERENCE.of_factors(), (1_863_598, 0, 45_579_136), _KEPT),
        "-static-dynamic": Row(
            networks.STATIC_DYNAMIC, recipes.REFERENCE.of_factors(), (1_123_376, 0, 21_715_440), _LAYERS
        ),
        "-mobilenet": Row(MOBILENET.of(width=0.5), recipes.CIFAR, (700_490, 0, 27_969_024), _CONVOLUTIONS),
        "-resnet": Row(RESNET, recipes.CIFAR.decaying(5e-4), (11_173_962, 0, 555_422_720)),
        "-addressnet": Row(ADDRESSNET, recipes.SHIFT_RESNET, (126_046, 0, 18_912_672), _SHIFTS),
        "-shift-resnet": Row(SHIFT_RESNET, recipes.SHIFT_RESNET, (95_642, 0, 16_433_792), _SHIFTS),
        "-anchored": Row(networks.ANCHORED, recipes.REFERENCE, (4_872_074, 696_320, 555_422_720), _REGULATORS),
        "-coresnet": Row(networks.CORESNET, recipes.CIFAR.decaying(5e-4), (23_520_842, 0, 1_297_829_888), _CONTEXTUAL),
        "-polyphase": Row(networks.POLYPHASE, recipes.CIFAR.decaying(5e-4), (11_173_962, 0, 725_292_032), _SAMPLED),
        "-rolling": Row(networks.ROLLING, recipes.CIFAR.decaying(5e-4), (914_338, 0, 42_590_592)),
        "-conet": Row(networks.CONET, recipes.CONET, (301_482, 0, 84_689_216), _SIZES),
    },
    data.CIFAR100: {
        "-auto": Row(AUTO, recipes.REFERENCE, (1_356_104, 1_345_600, 45_094_272)),
        "-auto-v1": Row(AUTO_V1, recipes.REFERENCE, (1_000_828, 360_000, 42_676_992)),
        "-dynamic": Row(DYNAMIC, recipes.REFERENCE.of_factors(), (1_955_848, 0, 45_671_296)),
        "-static-dynamic": Row(networks.STATIC_DYNAMIC, recipes.REFERENCE.of_factors(), (1_215_626, 0, 21_807_600)),
        "-mobilenet": Row(MOBILENET, recipes.REFERENCE, (2_351_972, 0, 88_091_648)),
        "-resnet": Row(RESNET, recipes.REFERENCE, (11_220_132, 0, 555_468_800)),
        "-addressnet": Row(ADDRESSNET, recipes.SHIFT_RESNET, (139_096, 0, 18_925_632), _PAPER),
        "-shift-resnet": Row(SHIFT_RESNET, recipes.SHIFT_RESNET, (101_492, 0, 16_439_552)),
        "-anchored": Row(networks.ANCHORED, recipes.REFERENCE, (4_918_244, 696_320, 555_468_800)),
        "-conet": Row(networks.CONET, recipes.CONET, (304_452, 0, 84_692_096)),
    },
    data.TINY_IMAGENET: {
        "-auto": Row(AUTO, recipes.TINY.permuting(), (1_458_604, 1_345_600, 11_950_432)),
        "-auto-v1": Row(AUTO_V1, recipes.TINY.permuting(), (1_096_928, 360_000, 11_334_912)),
        "-dynamic": Row(DYNAMIC, recipes.TINY.of_factors(), (2_058_348, 0, 12_527_456)),
        "-static-dynamic": Row(networks.STATIC_DYNAMIC, recipes.TINY.of_factors(), (1_318_126, 0, 6_525_904)),
        "-mobilenet": Row(MOBILENET.of(width=0.5), recipes.TINY, (943_880, 0, 8_080_640)),
        "-resnet": Row(RESNET, recipes.TINY.decaying(5e-4), (11_279_112, 0, 148_148_224)),
    },
    data.TINY_SMALL_STEM: {
        "-addressnet": Row(ADDRESSNET, recipes.TINY_SHIFT_RESNET, (153_596, 0, 75_673_728)),
        "-shift-resnet": Row(SHIFT_RESNET.of(depth=56), recipes.TINY_SHIFT_RESNET, (306_904, 0, 178_991_616)),
    },
    data.IMAGENET: {
        "-auto": Row(AUTO, recipes.SHUFFLENET, (2_278_604, 1_345_600, 144_907_992)),
        "-auto-v1": Row(AUTO_V1, recipes.SHUFFLENET, (1_865_728, 360_000, 137_460_672)),
        "-dynamic": Row(DYNAMIC, recipes.SHUFFLENET.of_factors(), (2_878_348, 0, 145_485_016)),
        "-static-dynamic": Row(networks.STATIC_DYNAMIC, recipes.SHUFFLENET.of_factors(), (2_138_126, 0, 72_500_424)),
        "-mobilenet": Row(networks.DCD_MOBILENET, recipes.DCD_MOBILENET, (5_720_028, 0, 326_278_460), _PAPER_DCD),
        "-resnet": Row(networks.DCD_RESNET, recipes.DCD_RESNET, (29_835_056, 0, 4_236_426_838)),
        "-addressnet": Row(networks.TABLE_ADDRESSNET, recipes.SHUFFLENET, (3_703_688, 0, 523_401_216)),
        "-coresnet": Row(networks.CORESNET, recipes.CORESNET, (25_557_032, 0, 4_089_184_256), _PAPER_COCONV),
    },
}


def _preset(name: str, images: Data, row: Row) -> Preset:
    """A row as a function."""
    network = replace(row.network.config, stem=images.stem)

    def config() -> TrainConfig:
        return replace(row.recipe.config, data=images.config, network=network)

    root = " --data.root ROOT" if images.name in ("folder", "tiny-imagenet") else ""
    paragraphs = (
        f"{row.network.title.format(width=network.width, depth=network.depth)} on {images.title}.",
        row.network.text,
        f"Data: {images.text}",
        row.recipe.text,
        f"Expected: {row.expected}",
        f"Cost: {row.counts if isinstance(row.counts, str) else _cost(row.recipe.config, images, *row.counts)}",
        f"Command: ``python -m experiments.train {name}{root}``",
    )
    config.__name__ = config.__qualname__ = name.replace("-", "_")
    filled = (textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) for text in paragraphs)
    config.__doc__ = "\n\n".join(filled)
    return config


def _cost(config: TrainConfig, images: Data, parameters: int, training_only: int, multiply_adds: int) -> str:
    steps = config.epochs * (images.images // config.batch_size)
    more = f" and {training_only:,} more in training" if training_only else ""
    stated = f"{steps:,} steps of {config.batch_size} images, {parameters:,} parameters{more}"
    return f"not measured; {stated}, {multiply_adds:,} multiply-adds an image."


PRESETS: dict[str, Preset] = {
    f"{images.name}{ending}": _preset(f"{images.name}{ending}", images, row)
    for images, rows in _ROWS.items()
    for ending, row in rows.items()
}
"""Every preset by its name; as a function, ``digits-dynamic`` is ``experiments.presets.digits_dynamic``."""


def __getattr__(name: str) -> Preset:
    if (preset := PRESETS.get(name.replace("_", "-"))) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return preset
