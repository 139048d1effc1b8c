"""The model card of a network: Markdown under a YAML header, as the hub reads it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.exporting.numbers import Measured
from shuffle_jax.data import FolderConfig, TfdsConfig
from shuffle_jax.train.config import TrainConfig

INTRODUCTION = """# {name}

{family} with {mixer}, for {size} x {size} pixels and {classes} classes: {parameters:,} parameters. Trained with
shuffle_jax, which loads it without running code of this folder.

```python
from shuffle_jax.deploy.hub import load_network

net = load_network("{name}")  # a folder on this machine
net.predict(["a.png"], top=3)  # names with probabilities
```
"""


def card(
    name: str,
    config: TrainConfig,
    classes: Sequence[str],
    parameters: int,
    image_size: int,
    license: str,
    split: str,
    numbers: Sequence[Measured],
    command: str | None,
    figures: Sequence[str],
) -> str:
    """The text of README.md.

    Args:
        name: of the network.
        config: of the run.
        classes: the class names.
        parameters: how many it has.
        image_size: height and width of its images.
        license: of the weights, as the hub names it.
        split: what was measured on, "test" or "validation".
        numbers: of each form of the network; the last is that of the weights if they are hardened.
        command: that trains it; None if there is no short one.
        figures: names of files in ``figures/``.
    """
    network = config.network
    data, identifier = data_names(config)
    header: dict[str, Any] = {
        "library_name": "shuffle_jax",
        "license": license,
        "pipeline_tag": "image-classification",
        "tags": list(dict.fromkeys(["image-classification", "jax", "flax", network.family, network.mixer])),
    }
    if isinstance(config.data, TfdsConfig):
        header["datasets"] = [identifier]
    results = [result(one, name) for one in numbers]
    if results:
        header["metrics"] = ["accuracy"]
        task = {"type": "image-classification", "name": "Image classification"}
        dataset = {"type": identifier, "name": data, "split": split}
        header["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": results}]}]
    parts = [
        INTRODUCTION.format(
            name=name,
            family=network.family,
            mixer=f"the mixer {network.mixer}",
            size=image_size,
            classes=len(classes),
            parameters=parameters,
        ),
        "## What it was trained on\n\n" + data + ".\n",
    ]
    if numbers:
        rows = [f"| {one.name} | {100 * one.value:.2f} | {one.spread() or 'one seed'} |" for one in numbers]
        lead = f"Top-1 accuracy on {split} images in per cent, of these weights and over all runs that differ in seeds."
        table = ["| form | this run | mean ± deviation (extremes) |", "|---|---|---|", *rows]
        parts.append("## What it reaches\n\n" + lead + "\n\n" + "\n".join(table) + "\n")
    how = (
        f"    {command}\n" if command else "The configuration is `training` in config.json; no short command has it.\n"
    )
    parts.append("## How it was trained\n\n" + how)
    parts += [f"![{figure.partition('.')[0].replace('_', ' ')}](figures/{figure})\n" for figure in figures]
    return "---\n" + "\n".join(yaml(header)) + "\n---\n\n" + "\n".join(parts)


def data_names(config: TrainConfig) -> tuple[str, str]:
    """What a data set is called, and its identifier."""
    match config.data:
        case TfdsConfig(name=name):
            plain = name.partition(":")[0]
            return f"{plain} of tensorflow-datasets", plain
        case FolderConfig(root=root):
            return f"Pictures in a folder named {root.name}", root.name
        case _:
            return "Handwritten digits of scikit-learn", "sklearn-digits"


def result(one: Measured, name: str) -> dict[str, Any]:
    """A form's accuracy as the header has it: the mean over seeds where there are several, with its spread in words."""
    if not one.spread():
        return {"type": "accuracy", "value": round(one.value, 4), "name": f"Accuracy, {one.name}, one seed"}
    value = round(statistics.fmean(one.all), 4)
    return {"type": "accuracy", "value": value, "name": f"Accuracy, {one.name}: {one.spread()} in per cent"}


def yaml(value: Any, indent: str = "") -> Iterator[str]:
    """Lines of YAML for plain values; text is quoted as JSON quotes it, which YAML reads.

    >>> list(yaml({"a": ["x"], "b": {"c": 1}}))
    ['a:', '- "x"', 'b:', '  c: 1']
    """
    items = value.items() if isinstance(value, Mapping) else ((None, item) for item in value)
    for key, item in items:
        lead = f"{indent}- " if key is None else f"{indent}{key}: "
        if not isinstance(item, Mapping | list):
            yield lead + json.dumps(item, ensure_ascii=False)
        elif key is None:
            first, *rest = yaml(item, indent + "  ")
            yield lead + first.lstrip()
            yield from rest
        else:
            yield lead.rstrip()
            yield from yaml(item, indent + "  " * isinstance(item, Mapping))
