"""Checkpoints: what is restored is what was saved, whatever happened to it since; newest and best are kept."""

from __future__ import annotations

import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from shuffle_jax.files import held
from shuffle_jax.sharding import data_mesh, replicated
from shuffle_jax.train import content
from shuffle_jax.train.checkpoint import Checkpoints
from shuffle_jax.train.content import inspect
from shuffle_jax.train.state import TrainState


def make_state(average=None, others=None):
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params={"unit": {"kernel": jnp.arange(1000.0)}},
        collections={"batch_stats": {"unit": {"mean": jnp.ones(3)}}} | (others or {}),
        opt_state=(jnp.zeros(3), ()),
        average=average,
        key=jax.random.key(3),
    )
    return jax.device_put(state, replicated(data_mesh()))


@partial(jax.jit, donate_argnums=0)
def advance(state):
    return state.replace(step=state.step + 1, params=jax.tree.map(lambda p: p + 1, state.params))


def test_saved_states_survive_the_donation_of_their_buffers_and_keep_newest_and_best(tmp_path):
    state = make_state()
    scores = [0.1, 0.9, 0.3, 0.9, 0.2, None, 0.4]
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for score in scores:
            checkpoints.save(state, None if score is None else {"top1": score})
            for _ in range(3):
                state = advance(state)
        checkpoints.wait()
        assert checkpoints.steps() == [9, 15, 18]
        assert checkpoints.best() == 9
    with Checkpoints(tmp_path, keep=2, read_only=True) as again:
        assert again.steps() == [9, 15, 18]
        assert again.best() == 9
        for step in again.steps():
            found = again.restore(make_state(), step)
            np.testing.assert_array_equal(found.params["unit"]["kernel"], np.arange(1000.0) + step)
            assert int(found.step) == step
            assert found.key.dtype == state.key.dtype
            assert found.params["unit"]["kernel"].sharding == state.params["unit"]["kernel"].sharding
        assert int(again.restore(make_state()).step) == 18


def test_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(), {"top1": 0.5})
        checkpoints.save(make_state())
        checkpoints.wait()
        assert checkpoints.steps() == [0]
        assert checkpoints.best() == 0


def test_states_with_a_moving_average_come_back_whole(tmp_path):
    state = make_state(average={"unit": {"kernel": jnp.full(1000, 2.0)}})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
        found = checkpoints.restore(shapes)
        assert checkpoints.best() is None
    np.testing.assert_array_equal(found.average["unit"]["kernel"], 2.0)


def test_a_checkpoint_of_two_devices_is_restored_on_one(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state())
        one = jax.device_put(make_state(), replicated(data_mesh(jax.devices()[:1])))
        found = checkpoints.restore(one)
    assert found.params["unit"]["kernel"].sharding.device_set == {jax.devices()[0]}


def test_collections_are_saved_under_their_first_names_and_those_from_outside_beside_them(tmp_path):
    others = {
        "permutations": {"mixer": {"index": jnp.arange(4)}},
        "progress": {"mixer": {"share": jnp.float32(0.5)}},
        "memory": {"seen": jnp.int32(7)},
    }
    state = make_state(others=jax.device_put(others, replicated(data_mesh())))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
        found = checkpoints.restore(state)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, found.collections, state.collections)
    names = set(inspect(tmp_path / "0").shapes)
    assert {n.partition(".")[0] for n in names if not n.startswith("opt_state")} == {
        *("step", "params", "key", "statistics", "permutations", "progress", "collections")
    }
    assert "collections.memory.seen" in names and "statistics.unit.mean" in names


def test_a_state_of_the_first_version_is_restored(tmp_path):
    state = make_state()
    first = {  # what it wrote: nothing of progress, and empty permutations
        "step": jnp.int32(7),
        "params": state.params,
        "statistics": state.collections["batch_stats"],
        "permutations": {},
        "opt_state": state.opt_state,
        "average": None,
        "key": state.key,
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints._manager.save(7, args=ocp.args.StandardSave(jax.device_put(first, replicated(data_mesh()))))
        checkpoints.wait()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        found = checkpoints.restore(state)
        with pytest.raises(ValueError, match=r"of another network than .* \(progress.mixer.share is missing"):
            checkpoints.restore(make_state(others={"progress": {"mixer": {"share": jnp.float32(0.5)}}}))
    assert jax.tree.structure(found) == jax.tree.structure(state) and int(found.step) == 7
    np.testing.assert_array_equal(found.params["unit"]["kernel"], state.params["unit"]["kernel"])
    np.testing.assert_array_equal(jax.random.key_data(found.key), jax.random.key_data(state.key))


def test_missing_checkpoints_are_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
            checkpoints.restore(make_state())
        checkpoints.save(make_state())
        checkpoints.wait()
        with pytest.raises(FileNotFoundError, match=r"has no checkpoint of step 7: choose one of \[0\]"):
            checkpoints.restore(make_state(), 7)
        with pytest.raises(ValueError, match='checkpoint must be "last", "best" or a step, got \'newest\''):
            checkpoints.restore(make_state(), "newest")


def test_a_checkpoint_that_goes_while_it_is_read_is_not_taken_for_damaged(tmp_path, monkeypatch, capsys):
    """A training that goes on removes old checkpoints file by file; one that was killed leaves what it had begun."""
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step in (0, 3):
            checkpoints.save(make_state().replace(step=jnp.int32(step)))
    (folder / "0" / "default" / "_METADATA").unlink()
    monkeypatch.setattr(content.time, "sleep", lambda _: shutil.rmtree(folder / "0"))
    with held(tmp_path / "lock"), Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.steps() == [3] and capsys.readouterr().err == ""
        (folder / "3").rename(folder / "6")  # the one that was found whole makes room for a newer one
        assert int(checkpoints.restore(make_state()).step) == 3
    (folder / "6" / "default" / "_METADATA").unlink()
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        Checkpoints(folder, read_only=True)
