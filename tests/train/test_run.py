"""The run folder: never overwritten, checked on resume, numbered when taken."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.presets import digits
from shuffle_jax.data import AugmentConfig, FolderConfig, InputConfig, Preprocessing
from shuffle_jax.files import holder, load_arrays
from shuffle_jax.run import Run
from shuffle_jax.runs import begun, held, newest, next_free
from shuffle_jax.train import begin
from shuffle_jax.train.begin import check_config
from shuffle_jax.train.config import read_config, to_json

HOLD = """
import os, pathlib, sys, time
from shuffle_jax.files import held
with held(pathlib.Path(sys.argv[1]) / "lock"):
    if not os.fork():
        print(os.getpid(), flush=True)  # by now it has let go
    time.sleep(60)
"""

GREY = Preprocessing(8, 1, (0.3,), (0.4,))


def test_a_run_keeps_its_configuration_and_classes(tmp_path):
    run = Run(tmp_path / "run")
    assert not run.exists()
    run.start(to_json(digits()), ["cat", "dog"], GREY)
    assert run.exists() and read_config(run) == digits() and run.classes() == ("cat", "dog")
    assert run.preprocessing() == GREY
    assert set(run.versions()) >= {"shuffle_jax", "jax", "flax"}
    check_config(run, digits())
    longer = dataclasses.replace(digits(), epochs=60)
    assert check_config(run, longer, longer=True) == longer
    moved = dataclasses.replace(digits(), data=FolderConfig(Path("there")))
    with pytest.raises(ValueError, match=r"another configuration \(--data.type: DigitsConfig -> FolderConfig; "):
        check_config(run, moved)
    with pytest.raises(ValueError, match=r"another configuration \(--epochs: \d+ -> 3\): name another --run, or "):
        check_config(run, dataclasses.replace(digits(), epochs=3))


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"exists and is not empty: name another --run$"):
        Run(tmp_path).start(to_json(digits()), ["a"], GREY)
    with pytest.raises(ValueError, match="exists and is not empty"):
        Run(tmp_path / "thesis.tex").start(to_json(digits()), ["a"], GREY)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_is_held_by_one_process_and_let_go_with_it(tmp_path):
    run = Run(tmp_path / "run")
    run.start(to_json(digits()), ["a"], GREY)
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        fork = int(child.stdout.readline())
        for refused in (run.check_free, lambda: held(run).__enter__()):
            with pytest.raises(ValueError, match=rf"is being trained by process {child.pid} on .* since 20\d\d-"):
                refused()
    finally:
        child.kill()
        child.wait()
    assert run.lock.exists() and holder(run.lock) is None  # what it wrote is there; its own child does not hold on
    os.kill(fork, signal.SIGKILL)
    child.communicate()
    with held(run):
        assert f"process {os.getpid()} on " in holder(run.lock)
        with pytest.raises(ValueError, match="is being trained by process"), held(run):
            pass
    assert not run.lock.exists()


def test_where_there_are_no_locks_nothing_is_held_and_nothing_breaks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    run = Run(tmp_path)
    monkeypatch.setattr("shuffle_jax.files.fcntl.flock", refuse)
    with held(run), held(run):
        assert holder(run.lock) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [False, True])
def test_a_start_that_fails_leaves_what_was_there_before(tmp_path, there):
    run = Run(tmp_path / "runs" / "digits")
    if there:
        run.path.mkdir(parents=True)

    def fail(error, record):
        with begun(run):
            run.start(to_json(digits()), ["a"], GREY)
            run.metrics.write_text(json.dumps(record) + "\n")
            raise error

    for error in (KeyboardInterrupt(), ValueError("a picture is broken")):
        with pytest.raises(type(error)):
            fail(error, {"kind": "permutation", "step": 0})
        assert [p.name for p in tmp_path.rglob("*")] == ["runs", "digits"] * there
    with pytest.raises(ValueError, match="late"):
        fail(ValueError("late"), {"kind": "train", "step": 20})
    assert {p.name for p in run.path.iterdir()} == {"config.json", "metrics.jsonl"}


def test_a_run_without_checkpoints_says_what_can_be_done(tmp_path):
    run = Run(tmp_path / "my run")
    run.start(to_json(digits()), ["a"], GREY)
    command = f"python -m experiments.train --resume '{run.path}' --afresh"
    early, lost = "was stopped before its first", "has no checkpoints any"
    killed = [(1, "test", early), (2, "test", early), (3, "test", lost), (1, "result", lost)]  # as it saved, if it did
    for saving, count, kind, why in [
        (False, 9, "train", early),
        (False, 1, "test", lost),
        *((True, *k) for k in killed),
    ]:
        run.metrics.write_text((json.dumps({"kind": kind, "step": 9}) + "\n") * count)
        if saving:
            (run.checkpoints / "9.orbax-checkpoint-tmp").mkdir(parents=True, exist_ok=True)
        before = {p: p.read_bytes() for p in run.path.iterdir() if p.is_file()}
        with pytest.raises(ValueError, match=why) as error, begin.again(run):
            pass
        assert str(error.value).endswith(f"with: {command}") and "\n" not in str(error.value)
        assert {p: p.read_bytes() for p in run.path.iterdir() if p.is_file()} == before
        if run.is_barely_begun():
            run.check_free(afresh=True)
    with pytest.raises(ValueError, match="name another --run, or continue it with: "):
        run.check_free(afresh=True)


def test_no_run_is_said_to_be_none(tmp_path):
    with pytest.raises(ValueError, match=r"there is no run in .*: it has no config.json"):
        Run(tmp_path).config()


def test_where_crops_depend_on_the_pipeline_a_resumed_run_keeps_to_it(tmp_path):
    run = Run(tmp_path / "run")
    run.start(to_json(digits()), ["a"], GREY, "stream")
    cropped = dataclasses.replace(digits(), augment=AugmentConfig(resized_crop=0.5))
    for resume, config, asked, given in (
        (True, cropped, None, "stream"),
        (True, cropped, InputConfig("stream", workers=2), "stream"),
        (False, cropped, None, "auto"),
        (True, digits(), None, "auto"),  # the batches are the same by each
        (True, digits(), InputConfig("memory"), "memory"),
    ):
        assert begin.chosen_input(config, run, resume, asked).pipeline == given
    with pytest.raises(ValueError, match='started with the pipeline "stream", which crops other windows than "memory"'):
        begin.chosen_input(cropped, run, True, InputConfig("memory"))


def test_a_run_of_before_pipelines_was_kept_on_the_device(tmp_path):
    run = Run(tmp_path / "run")
    run.start(to_json(digits()), ["a"], GREY)
    file = run.path / "config.json"
    about = json.loads(file.read_text())
    del about["pipeline"]
    file.write_text(json.dumps(about))
    assert run.pipeline() == "device"


def test_a_folder_that_a_process_does_not_see_is_named(tmp_path, monkeypatch):
    class Elsewhere(Run):
        """On the disk of another host."""

        def start(self, *_):
            pass

    monkeypatch.setattr(begin, "SEEN", 0.0)
    parts = SimpleNamespace(
        config=digits(),
        dataset=SimpleNamespace(classes=()),
        preprocessing=GREY,
        pictures=None,
        batches=SimpleNamespace(pipeline="device"),
    )
    with pytest.raises(ValueError, match=r"process 0 does not see .*: name a folder on a file system that all"):
        begin.new(Elsewhere(tmp_path / "run"), parts).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_names_are_counted_up_and_the_newest_found(tmp_path):
    first = tmp_path / "digits"
    assert next_free(first) == first and newest(first) is None
    for name in ("digits", "digits-2", "digits-other"):
        Run(tmp_path / name).start(to_json(digits()), ["a"], GREY)
    assert next_free(first) == tmp_path / "digits-3"
    assert newest(first) == tmp_path / "digits-2"
    (Run(first).checkpoints / "8").mkdir(parents=True)
    assert newest(first) == first  # the other one cannot be resumed


def test_snapshots_after_the_resumed_step_are_forgotten(tmp_path):
    run = Run(tmp_path)
    for step in (0, 5, 10):
        run.save_snapshot(step, {"stage2_0/mixer": np.full((2, 2), step, np.float32)})
    run.forget_after(5)
    kept = run.snapshots()
    assert [p.name for p in kept.values()] == ["00000000.npz", "00000005.npz"] and list(kept) == [0, 5]
    assert load_arrays(kept[5])["stage2_0/mixer"][0, 0] == 5


def test_a_run_of_before_a_field_was_added_reads_as_it_was_meant(tmp_path):
    config = dataclasses.replace(digits(), data=FolderConfig(Path("images"), image_size=8))
    run = Run(tmp_path / "run")
    run.start(to_json(config), ["a"], GREY)
    file = run.path / "config.json"
    about = json.loads(file.read_text())
    for added in ("broken", "per_class", "test_per_class"):
        del about["config"]["data"][added]
    file.write_text(json.dumps(about))
    assert read_config(run) == config
    check_config(run, config)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, broken="skip", per_class=9))
    with pytest.raises(ValueError, match=r"\(--data.broken: stop -> skip; --data.per-class: None -> 9\)"):
        check_config(run, other)
