"""The count command: what it prints, to whom, and what it says to mistakes."""

from __future__ import annotations

import csv
import subprocess
import sys

import flax.linen as fnn
import pytest

from experiments import count as command
from shuffle_jax import models
from shuffle_jax.models.catalogue import catalogue

ONE = ["--match", "auto_shufflenet_v2_0.5x_32"]


CHOSEN = (
    "shufflenet_v1_g3_1.0x",
    "shufflenet_v1_g8_0.5x",
    "shufflenet_v2_0.5x",
    "shufflenet_v2_1.0x",
    "shufflenet_v2_1.0x_32",
)
OTHERS = ("mobilenet_v2_0.35x", "dcd8_mobilenet_v2_0.35x", "resnet18")


@pytest.fixture(scope="module")
def rows():
    """A part of the catalogue as CSV, the learned mixers beside the fixed ones: all of it takes a minute."""
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        chosen = {*CHOSEN, *OTHERS, *(f"auto_{name}" for name in CHOSEN)}
        patch.setattr(command, "networks", lambda groups: {n: e for n, e in catalogue().items() if n in chosen})
        patch.setattr(sys, "stdout", Lines(lines))
        command.run(["--csv"])
    return list(csv.reader("".join(lines).splitlines()))


class Lines:
    """A text file that keeps what is written."""

    def __init__(self, lines):
        self.write = lines.append

    def flush(self):
        pass


def test_csv_holds_the_whole_catalogue(monkeypatch, capsys):
    monkeypatch.setattr(command, "layers_of", lambda name, entry, known: [])
    command.run(["--csv"])
    _, *body = csv.reader(capsys.readouterr().out.splitlines())
    assert [row[0] for row in body] == list(catalogue())


@pytest.mark.slow
def test_csv_says_what_networks_cost(rows):
    header, *body = rows
    # Programs may read by position: what comes new comes last.
    assert header[:6] == ["name", "input", "classes", "parameters", "training_only_parameters", "multiply_adds"]
    assert header[6:] == ["generator_parameters"]
    by_name = {row[0]: row[1:] for row in body}
    assert set(by_name) == {*CHOSEN, *OTHERS, *(f"auto_{name}" for name in CHOSEN)}
    assert by_name["dcd8_mobilenet_v2_0.35x"][2] == "2267932"
    assert by_name["resnet18"][2] == "11689512"
    assert by_name["shufflenet_v2_1.0x"] == ["224x224x3", "1000", "2278604", "0", "144907992", "0"]
    assert by_name["auto_shufflenet_v2_1.0x"] == ["224x224x3", "1000", "2278604", "1345600", "144907992", "0"]
    assert by_name["shufflenet_v1_g3_1.0x"] == ["224x224x3", "1000", "1865728", "0", "137460672", "0"]
    assert by_name["shufflenet_v1_g8_0.5x"][2] == "1011448"
    # The stem is as large and the stages are the same; the head has 10 classes.
    assert by_name["shufflenet_v2_1.0x_32"][:3] == ["32x32x3", "10", str(2_278_604 - 990 * 1025)]


def test_learned_mixers_change_only_the_training(rows):
    by_name = {row[0]: row[1:] for row in rows[1:]}
    for name, (size, classes, parameters, training_only, *rest) in by_name.items():
        if name.startswith("auto_"):
            assert by_name[name.removeprefix("auto_")] == [size, classes, parameters, "0", *rest]
            assert int(training_only) > 0


def test_plain_table_is_aligned_and_ends_with_the_longest_number(capsys):
    command.run(ONE)
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == [*command.NETWORK]
    assert row.split() == ["auto_shufflenet_v2_0.5x_32", "32x32x3", "10", "352,042", "230,400", "10,902,016", "0"]
    assert [header.index(word) for word in ("name", "input")] == [row.index(word) for word in ("auto", "32x32x3")]
    assert len(header) == len(row)


def test_a_terminal_of_80_columns_shows_every_number_whole_and_folds_a_long_name(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    command.run(ONE)
    *heading, row, rest = capsys.readouterr().out.splitlines()
    assert "\x1b[1m" in heading[0]
    name, *numbers = row.split()
    assert [name + rest.strip(), *numbers] == [
        "auto_shufflenet_v2_0.5x_32",
        "32x32x3",
        "10",
        "352,042",
        "230,400",
        "10,902,016",
        "0",
    ]
    assert len(row) <= 80


def test_a_layer_that_is_called_in_many_places_is_one_row_with_all_its_work(capsys):
    command.run(["--layers", "anchored10_32", "--csv"])
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()[1:]]
    assert [sum(int(row[i]) for row in rows) for i in (3, 4, 5)] == [154_506, 0, 404_620_544]
    work = 9 * 128**2 * sum(2 * side**2 for side in (32, 16, 8, 4))
    assert [row for row in rows if row[0] == "anchor"] == [
        ["anchor", "Conv", "32x32x128", str(9 * 128**2), "0", str(work)]
    ]


class Generator(fnn.Module):
    """Two layers of eight and of 2 * 10 + 10 parameters."""

    classes: int

    @fnn.compact
    def __call__(self, x):
        return fnn.Dense(self.classes)(fnn.Dense(2)(x))


class Generating(fnn.Module):
    """One layer outside of a generator and one generator, whatever it generates."""

    classes: int

    @fnn.compact
    def __call__(self, x):
        x = fnn.Dense(3, name="generator_of_nothing")(x.mean((1, 2)))
        return Generator(self.classes, name="generator")(x)


def test_the_share_of_generators_is_the_last_column(capsys, monkeypatch):
    monkeypatch.setattr(models, "build", lambda config, classes: Generating(classes))
    command.run([*ONE, "--csv"])
    header, row = csv.reader(capsys.readouterr().out.splitlines())
    generated = (3 * 2 + 2) + (2 * 10 + 10)
    assert dict(zip(header, row, strict=True))["parameters"] == str(3 * 3 + 3 + generated)
    assert row[-1] == str(generated)


def test_layers_sum_to_the_network(capsys, rows):
    name = "auto_shufflenet_v2_0.5x"
    command.run(["--layers", name, "--csv"])
    header, *body = csv.reader(capsys.readouterr().out.splitlines())
    assert tuple(header) == command.LAYER
    assert ["stage2_0/mixer", "AutoShuffle", "28x28x48", "0", "2304", "0"] in body
    total = [str(sum(int(row[column]) for row in body)) for column in (3, 4, 5)]
    assert total == next(row[3:6] for row in rows if row[0] == name)
    command.run(["--layers", name, "--csv", "--match", "stage2_0/m"])
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "shuflenet_v2_1.0"], "there is no network 'shuflenet_v2_1.0'; near: shufflenet_v2_1.0x, "),
        (["--match", "squeezenet"], "no network has 'squeezenet' in its name; near: "),
        (
            ["--layers", "shufflenet_v2_0.5x_32", "--match", "mixxer"],
            "no layer of shufflenet_v2_0.5x_32 has 'mixxer' in its name; near: ",
        ),
    ],
)
def test_a_wrong_name_is_one_line_with_the_nearest_and_code_2(arguments, message, mistake):
    assert mistake(command.run, arguments).startswith(message)


def test_a_reader_who_has_seen_enough_is_no_error():
    arguments = [sys.executable, "-m", "experiments.count", "--layers", "shufflenet_v2_0.5x_32"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
