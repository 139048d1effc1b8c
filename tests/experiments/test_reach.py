"""The reach command: what it prints and draws, and what it says to mistakes."""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments import reach as command
from experiments.reaching import field
from shuffle_jax.models import NetworkConfig, addressnet, build
from shuffle_jax.models.catalogue import catalogue
from shuffle_jax.train import trained

SHARES = {"channel shuffle": ("1", "100"), "channel shift": ("3", "50"), "no mixer": ("-", "25")}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """AddressNets of one stage of four units, which are compiled as one."""
    monkeypatch.setattr(addressnet, "small_stages", lambda depth: (addressnet.Stage(36, 1, (2,) * 4),))
    monkeypatch.setattr(command, "NETWORKS", ("addressnet20_32",))
    monkeypatch.setattr(command, "STAGE", "stage1")


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """A function that makes folders of runs from configurations: their permutations are the ones given."""
    known = {}

    def load(path):
        config, index = known[path]
        permutations = {f"stage1_{i}": {"step": {"mixer": {"index": index}}} for i in range(4)}
        shape = SimpleNamespace(shape=(8, 8, 3))
        about = SimpleNamespace(network=config)
        return trained.Trained(build(config, 2), {"permutations": permutations}, shape, ("a", "b"), about, 1)

    def make(name, config, index=None):
        known[tmp_path / name] = config, index
        return tmp_path / name

    monkeypatch.setattr(trained, "load_trained", load)
    return make


def table(capsys):
    header, *body = csv.reader(capsys.readouterr().out.splitlines())
    return [dict(zip(header, row, strict=True)) for row in body]


@pytest.mark.slow
def test_mixers_in_one_stage_as_a_table_and_as_a_figure(capsys, tmp_path):
    path = tmp_path / "new" / "reach.png"
    command.run(["--csv", "--figure", str(path)])
    rows = table(capsys)
    assert tuple(rows[0]) == command.MIXERS
    assert {row["mixer"]: (row["units_to_full"], row["percent_after_1"]) for row in rows} | SHARES == {
        row["mixer"]: (row["units_to_full"], row["percent_after_1"]) for row in rows
    }
    assert {(row["network"], row["start"], row["channels"], row["units"]) for row in rows} == {
        ("AddressNet-20, 4 groups", "stage1_0", "36", "4")
    }
    assert [row["mixer"] for row in rows] == [*command.FIXED.values()]
    assert rows[-1]["percent_at_end"] == "25"
    assert os.listdir(path.parent) == ["reach.png"]
    assert np.asarray(Image.open(path).convert("RGB")).min() < 255


@pytest.mark.slow
def test_what_a_run_learned_stands_beside_the_others(runs, capsys):
    config = replace(catalogue()["auto_addressnet20_32"].config, depth=20)
    swapped = np.roll(np.arange(72), -9).astype(np.int32)  # The channel shift of 72 inner channels in 4 groups.
    first, second = (
        runs(name, config, index) for name, index in (("a", swapped), ("b", np.arange(72, dtype=np.int32)))
    )
    command.run(["--csv", "--run", str(first), str(second)])
    rows = table(capsys)
    learned = [row for row in rows if row["mixer"] == "learned permutations"]
    assert [row["network"] for row in learned] == ["AddressNet-20, 4 groups", f"AddressNet-20, 4 groups ({second})"]
    assert [(row["units_to_full"], row["percent_after_1"]) for row in learned] == [
        SHARES["channel shift"],
        SHARES["no mixer"],
    ]
    assert len(rows) == 2 * 5


def test_every_unit_of_one_network(capsys):
    command.run(["--network", "addressnet20_32", "--csv"])
    rows = table(capsys)
    assert tuple(rows[0]) == command.UNITS
    assert [tuple(row.values()) for row in rows] == [
        ("stage1_0", f"stage1_{i}", "36", "36", percent) for i, percent in enumerate(["50", "75", "100", "100"])
    ]


def test_networks_of_the_catalogue_by_match(monkeypatch, capsys):
    entries = catalogue()
    entry = entries["addressnet20_32"]
    squeeze = entry._replace(config=replace(entry.config, mixer="squeeze"))
    chosen = {"one_a": entry, "one_b": squeeze, "other": entry}
    monkeypatch.setattr("shuffle_jax.models.catalogue.catalogue", lambda: dict(chosen))
    command.run(["--match", "one"])
    printed = capsys.readouterr()
    header, row = printed.out.splitlines()
    assert tuple(header.split()) == command.MIXERS
    assert row.split() == ["one_a", "shift", "stage1_0", "36", "4", "3", "50", "100"]
    assert printed.err == "left out, as what they connect depends on the image: one_b\n"
    with pytest.raises(ValueError, match=r"^one_b: what stage1_0 connects depends on the image"):
        command.run(["--match", "one_b"])
    with pytest.raises(ValueError, match=r"^one_b: what stage1_0 connects depends on the image"):
        command.run(["--network", "one_b"])
    monkeypatch.setitem(chosen, "one_a", squeeze)
    with pytest.raises(ValueError, match=r"^what one_a, one_b connect depends on the image"):
        command.run(["--match", "one"])


def test_without_shortcuts_a_channel_must_go_through_weights(monkeypatch, capsys):
    """Enhanced AddressNet passes half of its channels on: they count as a shortcut."""
    monkeypatch.setattr(command, "NETWORKS", ("enhanced_addressnet20_32",))
    monkeypatch.setattr(command, "FIXED", {"identity": "no mixer"})
    found = []
    for options in ([], ["--no-shortcuts"]):
        command.run(["--csv", *options])
        (row,) = table(capsys)
        found.append((row["network"], row["percent_after_1"]))
    # 18 channels are new, in two groups that see half of the 36 each; the 18 that pass on see themselves.
    assert [network for network, _ in found] == ["Enhanced AddressNet-20, 4 groups"] * 2
    through, past = 18 * 18 / 36**2, 18 / 36**2
    assert [float(percent) for _, percent in found] == [
        pytest.approx(100 * (through + past), abs=0.01),
        pytest.approx(100 * through, abs=0.01),
    ]


def test_percent_is_100_only_for_all():
    assert [command.percent(share) for share in (1.0, 0.999999, 0.125, 1 / 3, 0.0)] == [
        "100",
        "99.99",
        "12.5",
        "33.33",
        "0",
    ]


@pytest.mark.slow
def test_a_network_that_no_channel_shift_fits_goes_without(monkeypatch, capsys):
    monkeypatch.setattr(addressnet, "small_stages", lambda depth: (addressnet.Stage(36, 1, (1,)),))
    command.run(["--csv"])
    printed = capsys.readouterr()
    assert "channel shift" not in printed.out
    assert printed.err.startswith("AddressNet-20, 4 groups goes without the channel shift: ")
    assert printed.err.count("\n") == 1


def test_mistakes_are_one_line_and_code_2(runs, mistake):
    outside = runs("outside", NetworkConfig(family="tests.experiments.outside:Linear", mixer="identity"))
    squeeze = runs("squeeze", NetworkConfig(family="addressnet", depth=20, mixer="squeeze"))
    for arguments, message in (
        (["--network", "adressnet20_32"], "there is no network 'adressnet20_32'; near: addressnet20_32, "),
        (["--match", "squeezenet"], "no network has 'squeezenet' in its name; near: "),
        (["--match", "a", "--network", "b"], "--match and --network are different tables: give one of them"),
        (["--match", "a", "--figure", "a.png"], "--figure compares mixers and --match does not: "),
        (["--field", "--figure", "a.png"], "--field draws no figure and counts shortcuts: leave out --figure and "),
        (["--field", "--network", "adressnet20_32"], "there is no network 'adressnet20_32'; near: addressnet20_32, "),
        (["--figure", "reach.jpg"], "the name of a figure must end with .png, .pdf, .svg, got 'reach.jpg'"),
        (
            ["--run", str(outside)],
            f"{outside}: tests.experiments.outside:Linear has no place for --network.mixer ",
        ),
        (["--run", str(squeeze)], f"{squeeze}: what stage1_0 connects depends on the image, "),
    ):
        assert mistake(command.run, arguments).startswith(message)
    assert not Path("a.png").exists()


@pytest.mark.slow
def test_the_receptive_field_of_mixers_in_one_stage(capsys):
    command.run(["--field", "--csv"])
    rows = table(capsys)
    assert tuple(rows[0]) == field.MIXERS
    found = {row["mixer"]: (row["rows"], row["columns"], row["reach"], row["box"]) for row in rows}
    # Four units that move by a pixel each way see 9 x 9; two channels of four groups are 36.
    assert found["channel shuffle"] == found["channel shift"] == ("9", "9", "36", "2916")
    assert found["no mixer"] == ("9", "9", "9", "729")
    exact = {row["mixer"]: float(row["exact"]) for row in rows}
    assert exact["no mixer"] < exact["channel shift"] < exact["channel shuffle"] < 2916
    assert {(row["start"], row["units"]) for row in rows} == {("stage1_0", "4")}


@pytest.mark.slow
def test_the_receptive_field_of_networks_and_of_the_layers_of_one(monkeypatch, capsys):
    entry = catalogue()["addressnet20_32"]
    squeeze = entry._replace(config=replace(entry.config, mixer="squeeze"))
    monkeypatch.setattr("shuffle_jax.models.catalogue.catalogue", lambda: {"one_a": entry, "one_b": squeeze})
    command.run(["--field", "--match", "one", "--csv"])
    shift, shuffled = table(capsys)  # What depends on the image is not left out.
    assert tuple(shift) == field.NETWORKS
    assert (
        (shift["rows"], shift["reach"], shift["box"]) == ("11", "3", "363") == (shuffled["rows"], "3", shuffled["box"])
    )
    command.run(["--field", "--network", "one_a", "--csv"])
    layers = table(capsys)
    assert tuple(layers[0]) == field.LAYERS
    assert [row["layer"] for row in layers[:5]] == [
        "stem/conv",
        "stem",
        "stage1_0/pointwise1",
        "stage1_0/step",
        "stage1_0",
    ]
    conv, step = layers[0], layers[3]
    assert (conv["box"], conv["gain"], conv["parameters"], conv["gain_per_1000_parameters"]) == (
        "27",
        "27",
        "972",
        "27.78",
    )
    assert (step["box"], step["gain"], layers[-1]["box"]) == ("75", "2.778", shift["box"])


@pytest.mark.slow
def test_the_receptive_field_of_what_a_run_learned(runs, capsys):
    config = replace(catalogue()["auto_addressnet20_32"].config, depth=20)
    swapped = np.roll(np.arange(72), -9).astype(np.int32)  # The channel shift of 72 inner channels in 4 groups.
    command.run(["--field", "--csv", "--run", str(runs("a", config, swapped))])
    rows = {row["mixer"]: list(row.values())[4:] for row in table(capsys)}
    assert len(rows) == 5 and rows["learned permutations"] == rows["channel shift"] != rows["channel shuffle"]
