"""What a person may have meant by a word that is none: the names most like it, and those that mean it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MEANING = {
    "learning-rate": "lr base-lr max-lr learningrate step-size alpha eta",
    "weight-decay": "wd decay l2 weightdecay",
    "batch-size": "b bs batch batchsize train-batch-size per-device-batch-size mini-batch",
    "epochs": "e ep n-epochs num-epochs max-epochs steps max-steps iterations iters num-train-epochs duration",
    "seed": "random-seed rng random-state",
    "devices": "device gpu gpus gpu-ids num-gpus cuda n-gpus world-size ngpus-per-node tpus cores",
    "run": "o output output-dir out-dir outdir out save-dir save save-path logdir log-dir name exp-name project",
    "out": "o output output-dir out-dir outdir save-dir save save-path figure",
    "json": "o output results save format",
    "resume": "checkpoint ckpt load restore continue from-checkpoint load-from resume-from auto-resume",
    "start-from": "pretrained weights init init-from finetune fine-tune load-weights checkpoint ckpt",
    "checkpoint": "ckpt weights epoch step load best",
    "network.family": "a arch architecture model network net backbone model-name family encoder",
    "network.mixer": "mixer shuffle mixing channel-shuffle mixers",
    "network.width": "width-mult multiplier scale alpha wider channels width-multiplier",
    "network.dropout": "drop drop-rate dropout-rate dp",
    "network.dtype": "amp fp16 bf16 half precision mixed-precision dtype bfloat16 float16",
    "network.depth": "layers num-layers blocks",
    "data.root": "data data-dir data-path dataset-path dataset-dir root path image-folder train-dir input-dir traindir",
    "data.name": "dataset data-set data-name tfds",
    "data.data-dir": "data data-dir data-path dataset-path root",
    "data.image-size": "img-size imgsz imsize size input-size resolution image-size crop-size train-crop-size",
    "image-size": "img-size imgsz imsize size input-size resolution crop-size",
    "data.test-fraction": "test-split test-size split holdout",
    "data.holdout": "test-split test-size split",
    "data.validation": "val-split val-fraction val-size validation-split validation-fraction split",
    "optimizer.kind": "opt optim optimizer solver algorithm",
    "optimizer.schedule": "scheduler sched lr-scheduler lr-schedule schedule cos cosine",
    "optimizer.warmup-epochs": "warmup warm-up warmup-steps lr-warmup-epochs warm-up-epochs",
    "optimizer.clip-norm": "clip clip-grad grad-clip max-grad-norm gradient-clipping gradient-clip-val clip-grad-norm",
    "optimizer.freeze": "freeze frozen freeze-backbone lock freeze-layers",
    "optimizer.body-rate": "backbone-lr body-lr lr-backbone layer-decay",
    "optimizer.step-boundaries": "milestones lr-steps decay-epochs",
    "optimizer.step-factor": "gamma lr-gamma decay-rate",
    "penalty.weight": "lambda penalty reg regularization lam",
    "average-decay": "ema model-ema ema-decay model-ema-decay polyak swa",
    "accumulate": "grad-accum accumulation-steps gradient-accumulation-steps accum-iter grad-accum-steps",
    "label-smoothing": "smoothing ls smooth",
    "log-every": "log-interval print-freq logging-steps log-steps log-freq",
    "evaluate-every": "eval-interval val-freq eval-freq eval-every eval-steps validate-every test-interval save-every",
    "keep": "save-total-limit max-checkpoints checkpoint-hist keep-last",
    "input.workers": "j workers num-workers n-workers threads loader-workers",
    "augment.flip": "hflip horizontal-flip fliplr random-flip flip",
    "augment.random-operations": "aa auto-augment autoaugment randaugment randaug rand-augment augment",
    "augment.erasing": "reprob random-erase random-erasing",
    "augment.jitter": "color-jitter colour-jitter brightness",
    "augment.mixup": "mixup-alpha mixup-prob",
    "augment.cutmix": "cutmix-alpha cutmix-prob",
    "augment.crop-padding": "padding pad crop random-crop",
    "profile": "trace profiler tensorboard-trace",
    "distributed.coordinator": "master-addr dist-url rdzv-endpoint init-method coordinator-address",
    "distributed.processes": "nproc-per-node nnodes num-processes world-size",
    "distributed.index": "rank node-rank local-rank process-id",
    "traceback": "debug verbose v stacktrace trace",
    "top": "k topk top-k",
    "seconds": "time timeout time-limit budget",
    "methods": "method algorithm solver benchmark",
    "csv": "output format table",
    "platforms": "platform target device backend",
}
"""What options are called elsewhere, by the end of the name that they have here."""


def nearest(text: str, names: Iterable[str]) -> str:
    """The three names most like a text, as a whole or in the part behind the last dot."""

    def likeness(name: str) -> float:
        parts = (name, name.rpartition(".")[2])
        return max(difflib.SequenceMatcher(None, text.lstrip("-"), part.lstrip("-")).ratio() for part in parts)

    return ", ".join(sorted(names, key=likeness, reverse=True)[:3])


def nearest_option(text: str, names: Iterable[str]) -> str:
    """The options that mean what a text usually means, or else those most like it.

    >>> nearest_option("--lr", ["--optimizer.learning-rate", "--log-every", "--resume"])
    '--optimizer.learning-rate'
    >>> nearest_option("--epoch", ["--epochs", "--resume", "--keep", "--seed"])
    '--epochs, --keep, --seed'
    """
    names = list(names)
    word = text.lstrip("-").replace("_", "-").lower()
    tail = word.rpartition(".")[2]
    ends = [end for end, words in MEANING.items() if {word, tail} & set(words.split())]
    ends = [tail, *ends]  # such as "--dropout", which lacks the part that it belongs to
    meant = [name for end in ends for name in names if name == f"--{end}" or name.endswith(f".{end}")]
    return ", ".join(dict.fromkeys(meant)) or nearest(word, names)
