"""The run folder: never overwritten, checked on resume, numbered when taken."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.presets import digits
from shuffle_jax.data import AugmentConfig, FolderConfig, InputConfig, Preprocessing
from shuffle_jax.run import Run, load_arrays, newest, next_free
from shuffle_jax.train import loop
from shuffle_jax.train.config import check_config, read_config, to_json

GREY = Preprocessing(8, 1, (0.3,), (0.4,))


def test_a_run_keeps_its_configuration_and_classes(tmp_path):
    run = Run(tmp_path / "run")
    assert not run.exists()
    run.start(to_json(digits()), ["cat", "dog"], GREY)
    assert run.exists() and read_config(run) == digits() and run.classes() == ("cat", "dog")
    assert run.preprocessing() == GREY
    assert set(run.versions()) >= {"shuffle_jax", "jax", "flax"}
    check_config(run, digits())
    with pytest.raises(ValueError, match=r"another configuration \(epochs: \d+ -> 3\): resume it with its own"):
        check_config(run, dataclasses.replace(digits(), epochs=3))


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="exists and is not empty: continue it with --resume, or name another --run"):
        Run(tmp_path).start(to_json(digits()), ["a"], GREY)
    with pytest.raises(ValueError, match="exists and is not empty"):
        Run(tmp_path / "thesis.tex").start(to_json(digits()), ["a"], GREY)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


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
        assert loop._input(config, run, resume, asked).pipeline == given
    with pytest.raises(ValueError, match='started with the pipeline "stream", which crops other windows than "memory"'):
        loop._input(cropped, run, True, InputConfig("memory"))


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

    monkeypatch.setattr(loop, "SEEN", 0.0)
    parts = SimpleNamespace(
        config=digits(),
        dataset=SimpleNamespace(classes=()),
        preprocessing=GREY,
        batches=SimpleNamespace(pipeline="device"),
    )
    with pytest.raises(ValueError, match=r"process 0 does not see .*: name a folder on a file system that all"):
        loop._start(Elsewhere(tmp_path / "run"), parts)


def test_names_are_counted_up_and_the_newest_found(tmp_path):
    first = tmp_path / "digits"
    assert next_free(first) == first and newest(first) is None
    for name in ("digits", "digits-2", "digits-other"):
        Run(tmp_path / name).start(to_json(digits()), ["a"], GREY)
    assert next_free(first) == tmp_path / "digits-3"
    assert newest(first) == tmp_path / "digits-2"


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
    with pytest.raises(ValueError, match=r"\(data.broken: stop -> skip; data.per_class: None -> 9\)"):
        check_config(run, other)
