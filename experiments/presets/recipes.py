"""How presets train: everything of a configuration but data and network, and whose it is."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from shuffle_jax.data import AugmentConfig, DigitsConfig
from shuffle_jax.models import NetworkConfig
from shuffle_jax.train.config import OptimizerConfig, TrainConfig
from shuffle_jax.train.own import OPTIMIZER, PENALTY


class Recipe(NamedTuple):
    """Whose recipe, what in it is ours, and what it says; data and network stand for those of a preset."""

    text: str
    config: TrainConfig

    def permuting(self) -> Recipe:
        """The same for relaxed permutations: their own rate, the constraint and the penalty."""
        rate, constraint = OPTIMIZER.permutation_rate, OPTIMIZER.constraint
        optimizer = replace(self.config.optimizer, permutation_rate=rate, constraint=constraint)
        config = replace(self.config, optimizer=optimizer, penalty=PENALTY)
        return Recipe(self.text, config)

    def of_factors(self) -> Recipe:
        """The same for factors made from images, which a heavier weight in short trainings was not tried with.

        The ramp of the regulariser in the soft parts multiplies that of the weight, which is all that the hard parts
        and ``information`` have.
        """
        recipe = self.permuting()
        return recipe._replace(config=replace(recipe.config, penalty=replace(recipe.config.penalty, for_steps=0)))

    def decaying(self, weight_decay: float) -> Recipe:
        """The same with another weight decay."""
        optimizer = replace(self.config.optimizer, weight_decay=weight_decay)
        return Recipe(self.text, replace(self.config, optimizer=optimizer))


_OWN = "Recipe: this project's own, SGD with Nesterov's momentum 0.9 along a cosine after two epochs of warm-up"
_OURS = "weight decay leaves out norms and biases; the settings of permutations are those of the preset ``digits``"
_CROPPED = (
    "Where pictures are kept in memory as squares of 224 pixels, long ones have lost their ends before the crop, whose "
    "window has other odds (``random_resized_crop``). Batch norms see the whole batch, whatever the number of devices"
)
_DCD = (
    "Recipe: the released one of dynamic convolution decomposition, SGD with momentum 0.9, not Nesterov's, at the rate "
    "0.1 from the first step, {}, label smoothing 0.1; mixup with an alpha that rises to 0.2 over 100 epochs; random "
    f"resized crop and flip. Ours: weight decay leaves out norms and biases. {_CROPPED}. Mixup pairs neighbours of a "
    "batch, and its alpha rises with every step."
)
_ASSUMED = "That AddressNet was trained so is an assumption: its recipe is not known."

_SGD = OptimizerConfig(learning_rate=0.1, warmup_epochs=2, weight_decay=1e-4, clip_norm=1.0)
_START = TrainConfig(DigitsConfig(), NetworkConfig(), AugmentConfig(crop_padding=4, flip=True), _SGD)

DIGITS = Recipe(
    f"{_OWN}.", replace(_START, augment=AugmentConfig(), epochs=50, batch_size=64, evaluate_every=2)
).decaying(5e-4)
FOLDER = Recipe(
    f"{_OWN}; crop and flip, label smoothing 0.1.", replace(_START, epochs=60, batch_size=64, label_smoothing=0.1)
)
CIFAR = Recipe(f"{_OWN}; the usual crop and flip.", replace(_START, epochs=100, batch_size=128))
TINY = Recipe(
    f"{_OWN}; crop and flip, label smoothing 0.1. The settings of permutations are those of the preset ``digits``.",
    replace(CIFAR.config, augment=AugmentConfig(crop_padding=8, flip=True), batch_size=256, label_smoothing=0.1),
)

_STEPS = OptimizerConfig(
    learning_rate=0.1,
    schedule="step",
    warmup_epochs=0,
    step_boundaries=(0.3, 0.6, 0.8),
    step_factor=0.2,
    weight_decay=5e-4,
)
REFERENCE = Recipe(
    "Recipe: that of the public reference runs on CIFAR-100, SGD with Nesterov's momentum 0.9 at the rate 0.1, which "
    "falls to a fifth after 60, 120 and 160 of 200 epochs; batches of 128, weight decay 5e-4. Ours: crop and flip, of "
    f"which it says nothing; no warm-up; {_OURS}.",
    replace(_START, optimizer=_STEPS, epochs=200, batch_size=128),
).permuting()

_TENTHS = replace(_STEPS, step_boundaries=(81 / 164, 122 / 164), step_factor=0.1, nesterov=False)
SHIFT_RESNET = Recipe(
    "Recipe: that of ShiftResNet's released code, SGD at the rate 0.1, a tenth of it after 81 of 164 epochs and a "
    f"hundredth after 122, weight decay 5e-4, crop and flip. Ours: no weight decay of norms and biases. {_ASSUMED}",
    replace(_START, optimizer=_TENTHS, epochs=164, batch_size=128),
)
CONET = Recipe(
    "Recipe: that with which CONet evaluates what it finds, SGD with momentum 0.9, not Nesterov's, at the rate 0.1, "
    "half of it every 25 of 250 epochs; batches of 128, weight decay 5e-4. Ours: crop and flip; no weight decay of "
    "norms and biases.",
    replace(
        SHIFT_RESNET.config,
        optimizer=replace(_TENTHS, step_boundaries=tuple(part / 10 for part in range(1, 10)), step_factor=0.5),
        epochs=250,
    ),
)
TINY_SHIFT_RESNET = Recipe(
    f"{SHIFT_RESNET.text} Here it has 90 epochs, and the rate falls at a half and at three quarters of them.",
    replace(
        SHIFT_RESNET.config,
        augment=TINY.config.augment,
        optimizer=replace(_TENTHS, step_boundaries=(0.5, 0.75)),
        epochs=90,
    ),
)

_LINEAR = OptimizerConfig(
    learning_rate=0.5, schedule="linear", warmup_epochs=0, momentum=0.9, nesterov=False, weight_decay=4e-5
)
_LARGE = replace(
    _START, augment=AugmentConfig(flip=True, resized_crop=0.08), optimizer=_LINEAR, label_smoothing=0.1, log_every=100
)
SHUFFLENET = Recipe(
    "Recipe: that of the authors of ShuffleNetV2, SGD with momentum 0.9 at the rate 0.5, falling linearly to 0 over "
    "300,000 steps of batches of 1024, which are 240 epochs; weight decay 4e-5, label smoothing 0.1. Ours: random "
    f"resized crop and flip, of which it says nothing; {_OURS}. {_CROPPED}. {_ASSUMED}",
    replace(_LARGE, epochs=240, batch_size=1024),
).permuting()
DCD_MOBILENET = Recipe(
    _DCD.format("falling as a cosine with every step; 300 epochs of batches of 512; weight decay 2e-5, dropout 0.2"),
    replace(
        _LARGE,
        augment=AugmentConfig(flip=True, mixup=0.2, mixup_epochs=100, resized_crop=0.08),
        optimizer=replace(_LINEAR, learning_rate=0.1, schedule="cosine", weight_decay=2e-5),
        epochs=300,
        batch_size=512,
    ),
)
CORESNET = Recipe(
    "Recipe: the released one of contextual convolution, SGD with momentum 0.9, not Nesterov's, at the rate 0.1, a "
    "tenth at each of the epochs 30, 60 and 80 of 90; batches of 256, weight decay 1e-4; random resized crop and flip. "
    "Ours: weight decay leaves out norms and biases; the rate falls one epoch later than in the code, which steps "
    f"before each epoch. {_CROPPED}.",
    replace(
        _LARGE,
        optimizer=replace(_TENTHS, step_boundaries=(30 / 90, 60 / 90, 80 / 90), weight_decay=1e-4),
        label_smoothing=0.0,
        epochs=90,
        batch_size=256,
    ),
)
_QUARTERS = replace(_TENTHS, step_boundaries=(0.25, 0.5, 0.75), weight_decay=1e-4)
DCD_RESNET = Recipe(
    _DCD.format("a tenth at the epochs 30, 60 and 90; 120 epochs of batches of 256; weight decay 1e-4, dropout 0.1")
    + " Another ``--epochs`` moves the falls of the rate with it, to a quarter, a half and three quarters, and leaves "
    "the 100 epochs of mixup.",
    replace(DCD_MOBILENET.config, optimizer=_QUARTERS, epochs=120, batch_size=256),
)
