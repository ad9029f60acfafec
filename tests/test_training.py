"""Truncated backpropagation, losses and weights on disk."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lstm_jax as lj
from lstm_jax import training
from tests.common import assert_close, normal, random_like

MODEL = lj.LSTM(3, 5)
PARAMS = random_like(1, MODEL.init(jax.random.key(0)))
WINDOWS = normal(2, (4, 2, 6, 3))


def loss_fn(params, carry, batch, key):
    carry, ys = MODEL.apply(params, batch, carry, key=key)
    return jnp.mean(ys**2), (carry, {"ys": ys})


def by_hand(params, carry, xs):
    """One window in a Python loop, the carry outside the gradient."""

    def loss(params):
        state, ys = carry, []
        for t in range(xs.shape[1]):
            state, y = MODEL.step(params, state, xs[:, t])
            ys.append(y)
        return jnp.mean(jnp.stack(ys) ** 2), state

    return jax.grad(loss, has_aux=True)(params)


def test_train_step_agrees_with_a_loop_by_hand():
    tx = optax.sgd(0.3, momentum=0.9)
    copies = jax.tree.map(jnp.copy, PARAMS)
    state = training.create(copies, tx, MODEL.zero_state((2,)))
    train_step = training.make_train_step(loss_fn, tx)
    params, carry = PARAMS, MODEL.zero_state((2,))
    opt_state = tx.init(params)
    for window in WINDOWS:
        state, _ = train_step(state, window, jax.random.key(0))
        grads, carry = by_hand(params, carry, window)
        updates, opt_state = tx.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        assert_close((state.params, state.carry), (params, carry))
    assert int(state.step) == len(WINDOWS)


def test_train_step_hands_the_carry_on():
    tx = optax.set_to_zero()
    copies = jax.tree.map(jnp.copy, PARAMS)
    state = training.create(copies, tx, MODEL.zero_state((2,)))
    train_step = training.make_train_step(loss_fn, tx)
    ys = []
    for window in WINDOWS:
        state, metrics = train_step(state, window, jax.random.key(0))
        ys.append(metrics["ys"])
    whole = MODEL.apply(PARAMS, jnp.concatenate(list(WINDOWS), axis=1))
    assert_close((state.carry, jnp.concatenate(ys, axis=1)), whole)


def test_weights_round_trip(tmp_path):
    params = {"lstm": PARAMS, "scale": jnp.ones((), jnp.bfloat16)}
    path = tmp_path / "weights.safetensors"
    training.save_weights(path, params)
    like = jax.eval_shape(lambda: params)
    back = training.load_weights(path, like)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize(
    "leaf",
    [
        np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
        np.arange(8, dtype=">i4")[::2],
        np.broadcast_to(np.float32(3), (2, 4)),
        np.asarray(jnp.arange(6, dtype=jnp.bfloat16)).reshape(2, 3).T,
    ],
    ids=["transposed", "slice", "broadcast", "bfloat16"],
)
def test_weights_are_written_whatever_their_layout(leaf, tmp_path):
    path = tmp_path / "weights.safetensors"
    like = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype.newbyteorder("="))
    training.save_weights(path, [leaf])
    np.testing.assert_array_equal(training.load_weights(path, [like])[0], leaf)


KEYS = {
    "typed": jax.random.split(jax.random.key(3), 2),
    "rbg": jax.random.key(1, impl="rbg"),
    "unsafe_rbg": jax.random.key(1, impl="unsafe_rbg"),
}


def test_leaves_of_every_kind_come_back_as_they_were(tmp_path):
    tree = {
        "epoch": 3,
        "rate": 0.1,
        "done": True,
        "count": np.arange(4, dtype=">i8"),
        "mean": np.float64(0.1),
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "none": None,
        "empty": jnp.zeros((0, 3)),
    }
    path = tmp_path / "tree.safetensors"
    training.save_weights(path, tree)
    back = training.load_weights(path, tree)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for name in ("epoch", "rate", "done"):
        assert type(back[name]) is type(tree[name]) and back[name] == tree[name]
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert back["count"].dtype == np.int64 and back["mean"] == np.float64(0.1)
    assert isinstance(back["half"], jax.Array) and back["half"].dtype == jnp.bfloat16


def test_keys_come_back_as_they_were(tmp_path):
    path = tmp_path / "keys.safetensors"
    training.save_weights(path, KEYS)
    for like in (KEYS, jax.eval_shape(lambda: KEYS)):
        back = training.load_weights(path, like)
        for name, key in KEYS.items():
            assert back[name].dtype == key.dtype and back[name].shape == key.shape
            draw = jax.vmap(jax.random.bits) if key.shape else jax.random.bits
            np.testing.assert_array_equal(draw(back[name]), draw(key))
    other = KEYS | {"rbg": KEYS["unsafe_rbg"]}
    with pytest.raises(ValueError, match="missing .*urbg.*unknown .*rbg"):
        training.load_weights(path, other)


@pytest.mark.parametrize(
    "dtype", ["int8", "uint16", "uint32", "float16", "float32", "bool"]
)
def test_every_dtype_of_the_format_round_trips(dtype, tmp_path):
    path = tmp_path / "w.safetensors"
    array = jnp.arange(5).astype(dtype)
    training.save_weights(path, array)
    back = training.load_weights(path, jax.ShapeDtypeStruct((5,), dtype))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@jax.numpy_dtype_promotion("standard")  # Optax's Adam is not strict.
def test_training_goes_on_from_a_saved_state(tmp_path):
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    path = tmp_path / "state.safetensors"
    train_step = training.make_train_step(loss_fn, tx)
    make = lambda: training.create(
        jax.tree.map(jnp.copy, PARAMS), tx, MODEL.zero_state((2,))
    )
    state, key = make(), jax.random.key(0)
    for window in WINDOWS[:2]:
        state, _ = train_step(state, window, key)
    training.save_weights(path, state)
    resumed = training.load_weights(path, jax.eval_shape(make))
    for window in WINDOWS[2:]:
        state, _ = train_step(state, window, key)
        resumed, _ = train_step(resumed, window, key)
    assert isinstance(resumed, training.TrainState) and int(resumed.step) == 4
    jax.tree.map(np.testing.assert_array_equal, resumed, state)


REFUSED_LEAVES = {
    "string": ("adam", TypeError, "params['x']: expected an array, got str."),
    "object": (object(), TypeError, "params['x']: expected an array, got object."),
    "strings": (np.array(["a"]), ValueError, "params['x']: expected a dtype that the"),
    "complex": (1j, TypeError, "params['x']: expected an array, got complex."),
    "float8": (
        jnp.ones(2, jnp.float8_e5m2),
        ValueError,
        "params['x']: expected a dtype that the file format has",
    ),
    "large": (2**70, ValueError, "params['x']: expected an integer of 64 bits, got 11"),
    "masked": (
        np.ma.masked_array([1.0, 2.0], [False, True]),
        TypeError,
        "params['x']: expected an array, got MaskedArray, whose mask would be lost.",
    ),
}


@pytest.mark.parametrize(
    ("leaf", "error", "words"), REFUSED_LEAVES.values(), ids=REFUSED_LEAVES
)
def test_other_leaves_are_refused_by_name(leaf, error, words, tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(error, match=re.escape(words)):
        training.save_weights(path, {"x": leaf})
    assert not list(tmp_path.iterdir())


class Tensor:
    """As much of a tensor of PyTorch as is looked at."""

    shape, dtype = (2,), "torch.float64"
    detach = cpu = lambda self: self

    def numpy(self):
        return np.array([1.0, 1 / 3])


def test_tensors_are_written_as_they_are(tmp_path):
    path = tmp_path / "w.safetensors"
    training.save_weights(path, {"x": Tensor()})
    back = training.load_weights(path, {"x": np.zeros(2)})["x"]
    np.testing.assert_array_equal(back, Tensor().numpy())
    words = r"\['x'\]: expected an array, .* got Tensor. tensor.detach"
    with pytest.raises(TypeError, match=words):
        training.load_weights(path, {"x": Tensor()})


def test_a_place_where_no_file_can_be_is_named(tmp_path):
    folder = tmp_path / "runs"
    words = f"there is no folder {str(folder)!r}. os.makedirs makes it"
    with pytest.raises(FileNotFoundError, match=re.escape(words)):
        training.save_weights(folder / "w.safetensors", PARAMS)
    with pytest.raises(IsADirectoryError, match="path: expected a file, got the folde"):
        training.save_weights(tmp_path, PARAMS)
    assert not list(tmp_path.iterdir())


def test_load_weights_says_which_leaf_of_like_does_not_fit(tmp_path):
    path = tmp_path / "w.safetensors"
    training.save_weights(path, {"x": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"\['x'\]: expected int64 \[\], got float32"):
        training.load_weights(path, {"x": 3})
    with pytest.raises(TypeError, match=r"\['x'\]: expected an array, its .* got str"):
        training.load_weights(path, {"x": "adam"})
    training.save_weights(path, {"x": np.ones(2)})
    with pytest.raises(ValueError, match=r"\['x'\]: is float64.*jax.enable_x64"):
        training.load_weights(path, {"x": jax.ShapeDtypeStruct((2,), np.float64)})


def identity(params, carry, batch, key):
    loss = jnp.sum(params["w"] ** 2)
    return loss, (carry, {"loss": loss})


@pytest.mark.parametrize("carry", [(), None], ids=str)
def test_train_step_without_carry_batch_or_key(carry):
    tx = optax.sgd(0.25)
    state = training.create({"w": jnp.ones(2)}, tx, carry)
    state, metrics = training.make_train_step(identity, tx)(state, None, None)
    assert state.carry == carry and float(metrics["loss"]) == 2
    np.testing.assert_array_equal(state.params["w"], [0.5, 0.5])


def test_train_step_takes_parameters_that_share_memory():
    shared = jnp.ones(2)
    params = {"a": shared, "b": jax.device_put(shared, shared.device)}
    tx = optax.sgd(0.25)
    state = training.create(params, tx, {"average": shared})

    def both(params, carry, batch, key):
        loss = jnp.sum(params["a"] ** 2) + jnp.sum(params["b"])
        return loss, (carry, {})

    state, _ = training.make_train_step(both, tx)(state, None, None)
    np.testing.assert_array_equal(state.params["a"], [0.5, 0.5])
    np.testing.assert_array_equal(state.params["b"], [0.75, 0.75])
    np.testing.assert_array_equal(state.carry["average"], [1, 1])


def test_train_step_has_read_a_batch_when_it_is_back():
    def slow(params, carry, batch, key):
        out = jax.lax.fori_loop(0, 50, lambda _, m: m @ m * 1e-3, jnp.ones((256, 256)))
        batch = batch + 0 * out[0, 0]
        return jnp.sum(params["w"]) * 0, (carry, {"batch": batch})

    tx = optax.sgd(0.1)
    state = training.create({"w": np.ones(2, np.float32)}, tx, ())
    train_step = training.make_train_step(slow, tx)
    buffer = np.zeros((64, 1024), np.float32)
    for n in range(20):
        buffer[:] = n
        state, metrics = train_step(state, buffer, None)
        buffer[:] = -1
        assert (np.asarray(metrics["batch"]) == n).all()


TWO = lj.LSTM(3, 5, num_layers=2)


def returns(value):
    return lambda params, carry, batch, key: value(params, carry)


BAD_LOSS_FNS = {
    "two arguments": (
        lambda params, batch: jnp.sum(params),
        TypeError,
        "loss_fn: expected loss_fn(params, carry, batch, key) -> (loss, (carry, "
        "metrics)), got one that takes (params, batch). Where nothing is carried",
    ),
    "three arguments": (
        lambda params, batch, *, key: jnp.sum(params),
        TypeError,
        "got one that takes (params, batch, *, key).",
    ),
    "no function": (None, TypeError, "loss_fn: expected a function such as loss_fn("),
    "a bare loss": (
        returns(lambda params, carry: jnp.sum(params)),
        TypeError,
        "loss_fn: expected loss_fn(params, carry, batch, key) -> (loss, (carry, "
        "metrics)), got float32[].",
    ),
    "loss and carry": (
        returns(lambda params, carry: (jnp.sum(params), carry)),
        TypeError,
        "got (loss, (Directions, Directions)). The metrics are missing: {} is for none",
    ),
    "loss and metrics": (
        returns(lambda params, carry: (jnp.sum(params), {"loss": 1})),
        TypeError,
        "got (loss, dict).",
    ),
    "three values": (
        returns(lambda params, carry: (jnp.sum(params), carry, {})),
        TypeError,
        "got (float32[], (Directions, Directions), dict).",
    ),
    "metrics before carry": (
        returns(lambda params, carry: (jnp.sum(params), ({"a": 1}, carry))),
        ValueError,
        "Carry and metrics look swapped.",
    ),
    "no scalar": (
        returns(lambda params, carry: (params, (carry, {}))),
        ValueError,
        "loss: expected a scalar from loss_fn, got shape [2]. Return its mean or sum.",
    ),
}


@pytest.mark.parametrize("make", ["train_step", "truncated"])
@pytest.mark.parametrize(
    ("bad", "error", "words"), BAD_LOSS_FNS.values(), ids=BAD_LOSS_FNS
)
def test_the_usual_slips_of_a_loss_function_are_told(bad, error, words, make):
    tx, carry, batch = optax.sgd(0.1), TWO.zero_state((2,)), jnp.ones((2, 4, 3))
    with pytest.raises(error, match=re.escape(words)):
        if make == "truncated":
            run = training.truncated_value_and_grad(bad, window=2)
            run(jnp.ones(2), carry, batch)
        else:
            state = training.create(jnp.ones(2), tx, carry)
            training.make_train_step(bad, tx)(state, batch, None)


def test_load_weights_refuses_what_does_not_fit(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        training.load_weights(path, PARAMS)
    path.write_text("no weights")
    with pytest.raises(ValueError, match="no safetensors file"):
        training.load_weights(path, PARAMS)
    training.save_weights(path, PARAMS)
    with pytest.raises(
        ValueError, match=r"missing \['x'\]|missing .*'x'.*unknown .*bias"
    ):
        training.load_weights(path, {"x": jnp.ones(2)})
    other = lj.LSTM(3, 6).init(jax.random.key(0))
    words = r"kernel: expected float32 \[3, 24\], got float32 \[3, 20\]"
    with pytest.raises(ValueError, match=words):
        training.load_weights(path, other)
