"""What the benchmark measures, table by table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

from experiments.benchmark import (
    aims,
    assignments,
    beside,
    cases,
    contextual,
    convolutions,
    mixing,
    pipelines,
    sampling,
    shifts,
)
from experiments.benchmark.beside import Kind
from experiments.benchmark.cases import Cases, Workload
from experiments.benchmark.effort import Effort
from experiments.benchmark.given import Network
from experiments.benchmark.measuring import Result, measure, measure_costs
from experiments.benchmark.showing import Table, added_columns, peaks, sizes_for_images
from experiments.benchmark.startup import compile_times, import_times
from shuffle_jax.models import NetworkConfig
from shuffle_jax.models.stem import StemKind
from shuffle_jax.sharding import cores

COMPARED = {
    # network, and heights and widths of its images
    "shufflenet": (Network("shufflenet_v2", "shuffle"), (32, 224)),
    "mobilenet": (Network("mobilenet_v2", "identity"), (32, 224)),
    "resnet": (Network("resnet", "identity", depth=18), (32,)),
}
"""What stands beside other engines; the first two in inference as well, and at the larger size with its memory."""

STEMS: dict[int, StemKind] = {32: "small", 224: "imagenet"}
DIVISORS = {32: 1, 224: 4}
"""By how much the batch of a training step is divided at a size."""


def tables(work: Workload, compile_torch: bool = False) -> dict[str, Table]:
    """Every table for one workload, with its aims; torch.compile is beside torch on a GPU, or where it is asked for."""
    single = dataclasses.replace(work, batch_size=1)
    channels = f"moving 116 channels, {work.batch_size} images, {work.dtype}"
    network = f"ShuffleNetV2 {work.width}x, {work.image_size}x{work.image_size}, {work.dtype}"
    batch = f"batch {work.batch_size}"

    def table(title: str, candidates: Callable[..., Cases], work: Workload, images: bool = True) -> Table:
        return Table(title, partial(measure, partial(candidates, work)), work.batch_size if images else None)

    forward, backward = (partial(cases.moving_channels, backward=b) for b in (False, True))
    found = {
        "permute": table(f"{channels}, forward", forward, work, images=False),
        "permute-gradient": table(f"{channels}, forward and backward", backward, work, images=False),
        "depthwise": table("depthwise 3x3, forward and backward", cases.depthwise, work, images=False),
        "grouped": table("grouped 1x1 in 3 groups, forward and backward", cases.grouped_pointwise, work, images=False),
        **mixing_tables(work),
        **convolution_tables(work),
        **contextual_tables(work),
        **shift_tables(work),
        **sampling_tables(work),
        **assignment_tables(work),
        **pipeline_tables(work),
        "inference": table(f"{network}, inference, {batch}", cases.inference, work),
        "inference-1": table(f"{network}, inference, batch 1", cases.inference, single),
        "training": table(f"{network}, training step, {batch}", cases.training, work),
        **torch_tables(work, compile_torch),
        "compile": Table(f"{network}, training step, before it can run", partial(compile_times, work)),
        "import": Table("a new interpreter that imports", import_times),
    }
    return {name: dataclasses.replace(one, goals=aims.goals(name, work)) for name, one in found.items()}


def mixing_tables(work: Workload) -> dict[str, Table]:
    """The tables of Kronecker products and of 1x1 layers, one for each stage of the network."""

    def table(title: str, candidates: Callable[..., Cases], channels: int, backward: bool) -> Table:
        title = f"{title}, {work.batch_size} images, {work.dtype}, {'forward and backward' if backward else 'forward'}"
        return Table(title, partial(measure, partial(candidates, work, channels, backward)))

    found: dict[str, Table] = {}
    for channels in mixing.CHANNELS:
        for suffix, backward in (("", False), ("-gradient", True)):
            title, half = f"mixing {channels} channels", channels // 2
            found[f"kronecker-{channels}{suffix}"] = table(title, mixing.kronecker_mixing, channels, backward)
            title = f"1x1 layer of {half} channels"
            found[f"pointwise-{half}{suffix}"] = table(title, mixing.static_dynamic, channels, backward)
    return found


def convolution_tables(work: Workload) -> dict[str, Table]:
    """The tables of layers and networks whose convolutions depend on the image, for a batch and for one image."""
    found: dict[str, Table] = {}
    for suffix, own in (("", work), ("-1", dataclasses.replace(work, batch_size=1))):
        batch = f"batch {own.batch_size}, {own.dtype}"
        for name, shape in convolutions.SHAPES.items():
            window = f"{shape.kernel_size}x{shape.kernel_size}, {shape.channels} to {shape.features} channels"
            title = f"dynamic convolution {window}, {shape.side}x{shape.side}, {batch}"
            tolerance = beside.tolerance_of("inference", own)
            measured = partial(beside.measure_beside, beside.layers(own, name), tolerance)
            found[f"dynamic-{name}{suffix}"] = Table(title, measured)
        for name, config in convolutions.NETWORKS.items():
            title, images = f"{config.family}, {own.image_size}x{own.image_size}", own.batch_size
            for kind, cases_of in (
                ("inference", convolutions.inference),
                ("training", convolutions.training),
            ):
                measured = partial(measure, partial(cases_of, own, config))
                found[f"{name}-{kind}{suffix}"] = Table(f"{title}, {kind}, {batch}", measured, images)
    for name, config in convolutions.NETWORKS.items():
        title = f"{config.family}, {work.image_size}x{work.image_size}, memory of inference, {work.dtype}"
        needed = partial(_needed, work, config)
        found[f"{name}-memory"] = Table(title, needed, work.batch_size, sizes_for_images)
    return found


def contextual_tables(work: Workload) -> dict[str, Table]:
    """The tables of contextual convolutions beside plain ones."""
    found: dict[str, Table] = {}
    for name, shape in contextual.SHAPES.items():
        for suffix, backward in (("", False), ("-gradient", True)):
            what = f"{shape.levels} levels, {shape.channels} channels, {shape.side}x{shape.side}, stride {shape.stride}"
            what = (
                f"{what}, {work.batch_size} images, {work.dtype}, {'forward and backward' if backward else 'forward'}"
            )
            title = f"contextual {'depthwise ' if shape.depthwise else ''}3x3, {what}"
            measured = partial(measure, partial(contextual.layer, work, shape, backward))
            found[f"contextual-{name}{suffix}"] = Table(title, measured)
    for kind in ("inference", "training"):
        title = f"{work.image_size}x{work.image_size}, {kind}, batch {work.batch_size}, {work.dtype}"
        networks = partial(cases.steps, work, contextual.NETWORKS, kind == "training")
        found[f"contextual-{kind}"] = Table(f"CoResNet-50 0.5x, {title}", partial(measure, networks), work.batch_size)
    return found


def shift_tables(work: Workload) -> dict[str, Table]:
    """The tables of what mixers add to a network, for one image and for a batch, and of shifts alone in each stage."""
    found: dict[str, Table] = {}
    for images in shifts.BATCHES:
        network = f"AddressNet-{shifts.DEPTH}, {work.image_size}x{work.image_size}"
        title = f"what a mixer adds to {network}, inference, batch {images}, {work.dtype}"
        programs = partial(shifts.mixers, dataclasses.replace(work, batch_size=images))
        found[f"mixers-{images}"] = Table(title, partial(measure_costs, programs), show=added_columns)
    for channels in shifts.CHANNELS:
        for suffix, backward in (("", False), ("-gradient", True)):
            what = f"{work.batch_size} images, {work.dtype}, {'forward and backward' if backward else 'forward'}"
            alone = partial(measure, partial(shifts.shifts, work, channels, backward))
            found[f"shifts-{channels}{suffix}"] = Table(f"shifting {channels} channels, {what}", alone)
            title = f"shifts and a grouped 1x1 of {channels} channels, {what}"
            step = partial(measure, partial(shifts.steps, work, channels, backward))
            found[f"steps-{channels}{suffix}"] = Table(title, step)
    return found


def sampling_tables(work: Workload) -> dict[str, Table]:
    """The tables of networks with strides and with what samples in their place."""
    found: dict[str, Table] = {}
    for name, config in sampling.NETWORKS.items():
        for kind in ("inference", "training"):
            title = (
                f"{config.family}, {work.image_size}x{work.image_size}, {kind}, batch {work.batch_size}, {work.dtype}"
            )
            measured = partial(measure, partial(sampling.steps, work, config, kind == "training"))
            found[f"sampling-{name}-{kind}"] = Table(f"sampling in {title}", measured, work.batch_size)
    return found


def torch_tables(work: Workload, compile_torch: bool) -> dict[str, Table]:
    """The tables with other engines: the network of the workload, and the networks of ``COMPARED``."""

    def table(kind: Kind, own: Workload, network: Network) -> Table:
        step = "inference" if kind == "inference" else "training step without augmentation"
        title = f"{network}, {own.image_size}x{own.image_size}, {own.dtype}, {step}, batch {own.batch_size}"
        recipes = beside.engines(kind, own, network, compile_torch)
        measured = partial(beside.measure_beside, recipes, beside.tolerance_of(kind, own))
        return Table(title, measured, own.batch_size)

    usual, single = Network("shufflenet_v2", "shuffle", work.width), dataclasses.replace(work, batch_size=1)
    found = {
        "torch-inference": table("inference", work, usual),
        "torch-inference-1": table("inference", single, usual),
        "torch-training": table("training", work, usual),
    }
    for name, (plain, sizes) in COMPARED.items():
        for size in sizes:
            network = plain._replace(stem=STEMS[size])
            images = max(1, work.batch_size // DIVISORS[size])
            own = dataclasses.replace(work, batch_size=images, image_size=size)
            found[f"torch-{name}-{size}"] = table("training", own, network)
            if name == "resnet":
                continue
            for suffix, batch in (("", work), ("-1", single)):
                several = dataclasses.replace(batch, image_size=size)
                found[f"torch-inference-{name}-{size}{suffix}"] = table("inference", several, network)
            if size == max(sizes):
                title = f"{network}, {size}x{size}, {own.dtype}, memory of training steps, batch {images}"
                measured = partial(beside.measure_peaks, beside.keeping(own, network))
                found[f"torch-memory-{name}"] = Table(title, measured, show=peaks)
                title = f"{network}, {size}x{size}, {own.dtype}, training step with and without remat, batch {images}"
                both = [beside.engines("training", own, network)[-1], beside.remat(own, network)]
                measured = partial(beside.measure_beside, both, beside.tolerance_of("training", own))
                found[f"remat-{name}"] = Table(title, measured, images)
    return found


def assignment_tables(work: Workload) -> dict[str, Table]:
    """The tables of linear assignments, whose sizes and batches are their own."""
    found: dict[str, Table] = {}
    for name, problem in assignments.PROBLEMS.items():
        matrices = "1 matrix" if problem.batch == 1 else f"{problem.batch} matrices"
        title = f"linear assignment of {matrices} of {problem.size} x {problem.size}, {problem.kind}, {work.dtype}"
        candidates = partial(assignments.assignments, work, problem)
        found[f"assignment-{name}"] = Table(title, partial(measure, candidates))
    return found


def pipeline_tables(work: Workload) -> dict[str, Table]:
    """The tables of input pipelines: the training step behind each, and each alone at two sizes."""
    title = f"ShuffleNetV2 {work.width}x, {work.image_size}x{work.image_size}, {work.dtype}, training step by input"
    behind = partial(pipelines.training_times, work)
    found = {"pipeline-training": Table(f"{title}, batch {work.batch_size}", behind, work.batch_size)}
    for size, batch in pipelines.BATCHES.items():
        title = f"input alone, {size}x{size}, batch {batch}, {cores()} cores"
        found[f"pipeline-{size}"] = Table(title, partial(pipelines.input_times, size), batch)
    return found


def _needed(work: Workload, config: NetworkConfig, effort: Effort) -> Result:
    return {"bytes": convolutions.memory(work, config)}
