"""`python -m experiments.prepare`: what it writes, what it says, and what it leaves behind when it cannot."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import prepare
from experiments.cli import main
from shuffle_jax.data import TfdsConfig, load

ROOT = Path(__file__).parents[2]
BUILDERS = ROOT / "tests" / "data"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command and gives what it wrote on standard output; of a mistake the one line and code 2."""
    monkeypatch.syspath_prepend(BUILDERS)
    data_dir = tmp_path / "sets"

    def prepared(name, *options, module="tfds_builders"):
        words = [name, "--data-dir", str(data_dir), *options]
        words += ["--module", module] if module else []
        try:
            main(lambda: prepare.run(words))
        except SystemExit as end:
            out, err = capsys.readouterr()
            assert (end.code, out, err.count("\n")) == (2, "", 1), (out, err)
            return err.rstrip("\n")
        return capsys.readouterr().out

    prepared.data_dir = data_dir
    return prepared


def test_it_says_where_the_set_lies_and_how_to_train_on_it_and_prepares_it_once(run):
    said = run("embedded_digits")
    folder = run.data_dir / "embedded_digits" / "1.0.0"
    size = re.search(r"[\d.]+ MB", said)[0]
    rest = (
        f"examples: train 1,438, test 359; {size}\n"
        f"train with: python -m experiments.train PRESET --data.name embedded_digits --data.data-dir {run.data_dir}\n"
    )
    assert said == f"embedded_digits is prepared in {folder}\n{rest}"
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert 0 < float(size.split()[0]) * 1e6 <= 1.2 * sum(path.stat().st_size for path in folder.iterdir())
    assert run("embedded_digits") == f"embedded_digits is already prepared in {folder}\n{rest}"
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert len(load(TfdsConfig("embedded_digits", run.data_dir)).train) == 1438


def test_a_set_of_several_configurations_is_prepared_as_its_first(run):
    assert f"prepared in {run.data_dir}/mixed_pictures/large/1.2.0\n" in run("mixed_pictures")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embeded_digits", "there is no data set embeded_digits; near: embedded_digits, "),
        (
            "mixed_pictures/tiny",
            "mixed_pictures has no configuration 'tiny': mixed_pictures/large, mixed_pictures/small",
        ),
        ("embedded_digits/tiny", "embedded_digits has no configuration 'tiny': it has none: use embedded_digits"),
        (
            "mixed_pictures:7.0.0",
            "mixed_pictures:7.0.0: Dataset mixed_pictures cannot be loaded at version 7.0.0, only: ",
        ),
        (
            "mixed_pictures:1.1.0",
            "The version of the dataset you are trying to use (mixed_pictures/large/1.1.0) is too ",
        ),
        ("mixed pictures", "name must be such as cifar10, "),
        ("by_hand", "by_hand has files that you download yourself: put them into {dir}/downloads/manual, or give "),
        ("from_arrays", "TensorFlow, which prepares from_arrays, is not installed: pip install 'shuffle_jax[prepare]'"),
    ],
)
def test_what_cannot_be_prepared_is_said_in_one_line(run, name, message):
    assert run(name).startswith(message.format(dir=run.data_dir))
    assert not list(run.data_dir.glob("**/*.array_record*"))


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="it would be downloaded")
def test_a_stock_set_needs_tensorflow_before_anything_is_downloaded(run):
    message = "TensorFlow, which prepares cifar10, is not installed: pip install 'shuffle_jax[prepare]'"
    assert run("cifar10", module=None) == message


def test_instructions_for_files_by_hand_are_repeated_until_they_are_there(run, tmp_path):
    assert run("by_hand").endswith("its instructions: Register at the site, and put `pictures.tar` here.")
    (tmp_path / "hand").mkdir()
    (tmp_path / "hand" / "other.tar").touch()
    assert run("by_hand", "--manual-dir", str(tmp_path / "hand")) == f"by_hand: no pictures.tar in {tmp_path / 'hand'}"


@pytest.mark.slow
def test_without_a_network_it_gives_up_soon(run, monkeypatch):
    import urllib3.util.connection

    def nowhere(*_, **options):
        raise OSError("no such network")

    monkeypatch.setattr(urllib3.util.connection, "create_connection", nowhere)
    before = time.monotonic()
    message = run("far_away")
    assert time.monotonic() - before < 30  # the library alone would try for more than three minutes
    assert message.startswith("far_away: cannot download http://nowhere.invalid/archive.bin (")
    assert message.endswith(f"; run this where there is a network, and copy {run.data_dir / 'far_away'} here")


def test_a_module_that_is_not_there_is_named(run):
    assert run("embedded_digits", module="no_such_module").startswith("cannot import no_such_module: No module named ")


def test_a_path_is_no_module(run):
    message = run("embedded_digits", module="./tfds_builders.py")
    assert message == "'./tfds_builders.py' is no module: give its dotted name, such as my_package.my_builder"


def test_a_builder_that_lacks_a_part_is_told_from_one_that_is_not_there(run):
    assert run("unfinished") == "tfds_builders.Unfinished has no _generate_examples: add it"


def test_a_folder_that_cannot_be_made_is_named(run):
    run.data_dir.write_text("a file")
    assert run("embedded_digits").startswith(f"{run.data_dir}: File exists; a file is in the way")


def test_a_set_in_another_format_is_not_taken_for_prepared(run):
    run("embedded_digits")
    path = run.data_dir / "embedded_digits" / "1.0.0" / "dataset_info.json"
    path.write_text(path.read_text().replace('"array_record"', '"tfrecord"'))
    assert run("embedded_digits").startswith(f"{path.parent} is prepared as tfrecord, which cannot be read at random")


def test_a_full_disk_is_named(run, monkeypatch):
    from array_record.python import array_record_module

    class Full(array_record_module.ArrayRecordWriter):
        def write(self, record):
            raise RuntimeError(f"write() failed: {os.strerror(28)}; at byte 7")

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", Full)
    assert run("embedded_digits").startswith(f"{run.data_dir}: No space left on device; make room and try again")
    assert not list(run.data_dir.glob("embedded_digits/*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.fast_cases(1)
def test_what_is_interrupted_is_not_taken_for_prepared(tmp_path, number):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, BUILDERS)))}
    command = [sys.executable, "-m", "experiments.prepare", "endless", "--module", "tfds_builders"]
    process = subprocess.Popen([*command, "--data-dir", tmp_path], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        while not list(tmp_path.glob("endless/incomplete*")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    if number == signal.SIGINT:
        assert (said, process.returncode) == ("interrupted\n", 130)
        assert not list(tmp_path.glob("endless/*"))
    with pytest.raises(ValueError, match=r"^endless is not prepared in "):
        load(TfdsConfig("endless", tmp_path))
