"""Checkpoints are checked when read: what is damaged, and what does not fit."""

import hashlib
import json
import os
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import training
from tests.checkpoints import assert_good, assert_same, files, restored, saved, simple


def flip(path, bit=None):
    content = bytearray(path.read_bytes())
    bit = random.Random(path.name).randrange(8 * len(content)) if bit is None else bit
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_a_changed_bit_of_any_file_is_noticed(tmp_path):
    saved(tmp_path, 1, 2)
    paths = files(tmp_path / "step_2")
    assert {"record.json", "manifest.json", "manifest.sha256"} <= {
        p.name for p in paths
    }
    assert len(paths) > 6
    for path in paths:
        content = path.read_bytes()
        last = 8 * len(content) - 1
        for bit in (0, None, last):
            flip(path, bit)
            with pytest.raises(ValueError, match=f"damaged .*step 2: .*{path.name}"):
                restored(tmp_path, 2)
            path.write_bytes(content)
        for spoil in (b"", content[:-1], content + b"\n"):
            path.write_bytes(spoil)
            with pytest.raises(ValueError, match=f"step 2: .*{path.name}"):
                restored(tmp_path, 2)
        path.unlink()
        with pytest.raises(ValueError, match=f"step 2: .*{path.name}"):
            restored(tmp_path, 2)
        path.write_bytes(content)
    (tmp_path / "step_2" / "arrays" / "more").touch()
    with pytest.raises(ValueError, match="step 2: arrays/more is not its own"):
        restored(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["step_1", "step_2"]


def test_another_name_and_another_leaf_are_noticed(tmp_path):
    saved(tmp_path, 1)
    shutil.copytree(tmp_path / "step_1", tmp_path / "step_5")
    with pytest.raises(ValueError, match="manifest.json is of step 1"):
        restored(tmp_path, 5)
    content = json.loads((tmp_path / "step_1" / "manifest.json").read_bytes())
    content["leaves"]["['w']"]["sha256"] = hashlib.sha256(b"").hexdigest()
    seal(tmp_path / "step_1", content)
    with pytest.raises(ValueError, match=r"leaf \['w'\] is not what was saved"):
        restored(tmp_path, 1)


def seal(folder, content):
    """Writes a manifest of other content, with the digest that goes with it."""
    (folder / "manifest.json").write_text(json.dumps(content))
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    (folder / "manifest.sha256").write_text(f"{digest}  manifest.json\n")


def test_what_was_wrong_before_it_was_sealed_is_noticed(tmp_path):
    """Orbax refuses it, or the leaf's digest does, or it does not matter.

    With one leaf alone: Orbax drops what reads the others, and Python tells of that.
    """
    state, checkpoints = {"w": jnp.arange(35.0)}, training.Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.wait()
    folder, noticed = tmp_path / "step_1", set()
    whole = json.loads((folder / "manifest.json").read_bytes())
    for path in files(folder / "arrays"):
        content, name = path.read_bytes(), path.relative_to(folder).as_posix()
        flip(path)
        changed = hashlib.sha256(path.read_bytes()).hexdigest()
        seal(folder, whole | {"files": whole["files"] | {name: changed}})
        try:
            assert_same(checkpoints.restore(state).state, state)
        except ValueError as error:
            assert "step 1: " in str(error)
            noticed.add(str(error).partition("step 1: ")[2][:5])
        path.write_bytes(content)
    assert "Orbax" in noticed


def test_a_damaged_one_goes_aside_and_saving_goes_on_below_it(tmp_path):
    saved(tmp_path, 100, 150, 200)
    flip(files(tmp_path / "step_200" / "arrays")[0])
    (tmp_path / "step_150" / "record.json").unlink()
    with pytest.warns(UserWarning) as told:
        assert_good(tmp_path, 100)
    texts = sorted(str(warning.message) for warning in told)
    assert len(texts) == 2 and all("tests/checkpoints.py" in w.filename for w in told)
    assert "step_150 is damaged, step 150: record.json is missing" in texts[0]
    assert "step_200 is damaged, step 200: arrays/" in texts[1]
    assert sorted(os.listdir(tmp_path / "aside")) == ["step_150", "step_200"]
    saved(tmp_path, 150)
    assert_good(tmp_path, 150)
    saved(tmp_path, 200)
    (tmp_path / "step_200" / "record.json").unlink()
    with pytest.warns(UserWarning, match="moved to aside/step_200_1"):
        assert_good(tmp_path, 150)


def test_none_that_is_good_is_an_error_each_time(tmp_path):
    saved(tmp_path, 1, 2)
    for step in (1, 2):
        (tmp_path / f"step_{step}" / "record.json").unlink()
    for _ in range(2):
        with pytest.raises(
            ValueError, match="step 2: record.json.*step 1: record.json"
        ):
            restored(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["step_1", "step_2"]


@pytest.mark.parametrize(
    "like, match",
    [
        ({"w": 0}, r"\['w'\]: expected int64 \[\], got float32 \[5, 7\]"),
        ({"v": jnp.zeros(3)}, r"\['v'\]: expected float32 \[3\], got no such leaf"),
        ({"step": None}, r"\['step'\]: an unknown leaf"),
        ({"w": np.zeros((5, 8), np.float32)}, r"\['w'\]: expected float32 \[5, 8\]"),
        ({"w": jnp.zeros((5, 7), jnp.bfloat16)}, r"\['w'\]: expected bfloat16"),
        (
            {"key": jax.random.key(0, impl="rbg")},
            r"\['key'\]<key<rbg>>, got \['key'\]<",
        ),
        ({"key": jnp.zeros(2, jnp.uint32)}, r"expected \['key'\], got \['key'\]<key"),
    ],
)
def test_what_does_not_fit_is_told_and_stays(tmp_path, like, match):
    state = simple(2) | {"key": jax.random.key(0)}
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state | like)
        checkpoints.save(2, state)
        for step in (None, 2):
            with pytest.raises(ValueError, match=match) as raised:
                checkpoints.restore(state | like, step)
            assert "damaged" not in str(raised.value)
        assert checkpoints.steps() == (1, 2)
    assert sorted(os.listdir(tmp_path)) == ["step_1", "step_2"]


def test_going_on_from_an_earlier_one_moves_the_later_ones_aside(tmp_path):
    saved(tmp_path, 100, 150, 200)
    assert restored(tmp_path, 100).step == 100
    with pytest.warns(UserWarning, match="step 150 is saved after 150, 200") as told:
        with training.Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(150, simple(-150))
    assert told[0].filename == __file__
    assert checkpoints.steps() == (100, 150)
    assert_same(restored(tmp_path).state, simple(-150))
    assert sorted(os.listdir(tmp_path / "aside")) == ["step_150", "step_200"]
