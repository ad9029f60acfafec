"""Losses, metrics and penalties of rows on several devices are those on one."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_jax.training import (
    Weighted,
    accuracy,
    cross_entropy,
)
from tests.common import assert_close
from tests.loss_cases import CLASSES, CUT, ROWS, WIDE, V
from tests.sharded import AXIS_TYPES

CUT_MASK = np.random.default_rng(6).random(ROWS) < 0.6


CUT_LENGTHS = np.random.default_rng(7).integers(0, 5, ROWS[:1])


CUT_CONTROLS = {
    "mask": CUT_MASK,
    "lengths": CUT_LENGTHS,
    "label_lengths": CUT_LENGTHS % 3,
}


@pytest.mark.parametrize(("loss", "given", "takes"), CUT.values(), ids=CUT)
@pytest.mark.parametrize("kind", AXIS_TYPES, ids=lambda kind: kind.name)
def test_of_rows_on_several_devices_it_is_the_same(kind, loss, given, takes):
    args = [array for array, _ in given]
    moving = tuple(n for n, arg in enumerate(args) if arg.dtype.kind == "f")
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    put = lambda array, cut: jax.device_put(
        array, NamedSharding(mesh, P("data") if cut else P())
    )
    placed = [put(array, cut) for array, cut in given]
    for names in {(), takes}:
        controls = {name: CUT_CONTROLS[name] for name in names}
        cut = {name: put(value, True) for name, value in controls.items()}

        def both(args, controls):
            run = lambda *args: loss(*args, **controls)
            return jax.value_and_grad(run, moving)(*args)

        expected = both(args, controls)
        for current in (False, True):
            with jax.set_mesh(mesh) if current else contextlib.nullcontext():
                for also in (cut, controls) if current else (cut,):
                    assert_close(jax.jit(both)(placed, also), expected)
                # Without a current mesh JAX itself has no gradient of explicit axes.
                if current:
                    assert_close(both(placed, cut), expected)
                assert_close(loss(*placed, **cut), expected[0])


@pytest.mark.parametrize("kind", AXIS_TYPES, ids=lambda kind: kind.name)
def test_a_mean_of_sums_on_several_devices(kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    rows = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, P("data")))
    for current in (False, True):
        with jax.set_mesh(mesh) if current else contextlib.nullcontext():
            for weight in (jnp.sum(rows > 3), jnp.sum(rows) / 7, jnp.int32(4), 4):
                pair = Weighted(jnp.sum(rows), weight)
                assert pair.mean() == jax.jit(Weighted.mean)(pair) == 7
            none = Weighted(jnp.sum(rows), jnp.sum(rows > 9))
            assert none.mean() == jax.jit(Weighted.mean)(none) == 0


@pytest.mark.parametrize("kind", AXIS_TYPES, ids=lambda kind: kind.name)
def test_targets_that_are_no_class_on_several_devices(kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    put = lambda array: jax.device_put(array, NamedSharding(mesh, P("data")))
    logits, targets = put(WIDE), put(CLASSES.at[5, 1].set(V))
    with jax.set_mesh(mesh):
        for run in (cross_entropy, accuracy):
            with pytest.raises(ValueError, match="targets: expected classes"):
                run(logits, targets)
            assert np.isnan(jax.jit(run)(logits, targets))
        value, grad = jax.jit(jax.value_and_grad(cross_entropy))(logits, targets)
        wrong = np.isnan(grad)
        assert np.isnan(value) and wrong[5, 1].all() and wrong.sum() == V
