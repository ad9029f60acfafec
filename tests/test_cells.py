"""What each cell promises beside its equations, which tests/contract holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from tests.common import (
    assert_close,
    cell_cases,
    normal,
    oracle_step,
    random_controls,
    random_inputs,
    random_params,
    random_state,
)
from tests.oracles import cells as oracle

CELLS = cell_cases()
B, T = 3, 5


def case(cell):
    return random_params(cell, 0), random_inputs(cell, 1, (B,), T)


@pytest.mark.parametrize(
    "name", ["NIG", "FGR", "norm_ba", "heads", "slstm", "conv1d", "regularized"]
)
def test_one_step_and_states_agree_with_scan(name):
    cell = CELLS[name]
    params, xs = case(cell)
    state = random_state(cell, 2, (B,))
    _, states = lj.scan_states(cell, params, xs, state)
    for t in range(2):
        state, y = cell(params, state, xs[:, t])
        assert_close(jax.tree.map(lambda leaf: leaf[:, t], states), state)
    assert y.shape == state.h.shape


@pytest.mark.parametrize("name", ["FGR", "norm_ba", "heads", "slstm", "conv2d"])
def test_half_precision_keeps_the_state_wide(name):
    params, xs = case(CELLS[name])
    controls = random_controls(4, (B,), T, ("lengths", "mask", "reset"))
    state, ys = lj.scan(CELLS[name], params, xs.astype(jnp.bfloat16), **controls)
    assert ys.dtype == state.h.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in state[1:])
    expected, _ = lj.scan(CELLS[name], params, xs, **controls)
    assert np.abs(np.asarray(state.h, np.float32) - expected.h).max() < 0.1


def as_float64(tree):
    return {
        name: np.array(value, np.float64)
        for name, value in tree._asdict().items()
        if value is not None
    }


def test_slstm_survives_extreme_gates():
    """2,000 steps of pre-activations in the hundreds, with heads, in float32."""
    cell = lj.SLSTMCell(4, 6, num_heads=3, forget_gate="exponential")
    params = random_params(cell, 0)
    params = params._replace(kernel=params.kernel * 200)
    xs = normal(1, (2, 2000, 4))
    cotangent = normal(2, (2, 2000, 6))

    def loss(params, xs):
        state, ys = lj.scan(cell, params, xs)
        return jnp.vdot(cotangent, ys), (state, ys)

    grads, (state, ys) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, xs)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((grads, state, ys)))
    p = as_float64(params)
    zeros = {name: np.zeros((2, 6)) for name in "hcnm"}
    _, expected, _ = oracle.run(
        oracle_step(cell), p, np.array(xs, np.float64), zeros, zeros, {}, False
    )
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (params, xs))
        assert_close(lj.scan(cell, *wide)[1], expected[""], "float64")
    # In float32 a pre-activation of 1,000 has an error of 1e-4, so gates that
    # nearly tie come out otherwise; not many do.
    far = np.abs(ys - expected[""]) > 1e-2
    assert far.mean() < 1e-2


def test_slstm_does_not_depend_on_how_it_is_stabilised():
    """h is the same whatever m is carried, if c and n are scaled to match."""
    cell = lj.SLSTMCell(3, 4)
    params, xs = random_params(cell, 0), normal(1, (B, T, 3))
    state = random_state(cell, 2, (B,))
    shifted = state._replace(
        m=state.m + 2, c=state.c * np.exp(-2), n=state.n * np.exp(-2)
    )
    first, second = (lj.scan(cell, params, xs, s)[1] for s in (state, shifted))
    assert_close(first, second)


def test_slstm_starts_as_its_authors_do():
    params = lj.SLSTMCell(3, 8, num_heads=2).init(jax.random.key(0))
    assert not params.recurrent_kernel.any()
    i, f, g, o = np.split(np.asarray(params.bias), 4)
    assert not (i.any() or g.any() or o.any())
    power_law = 5 - 12 * (np.arange(4) / 3) ** 0.3
    np.testing.assert_allclose(f, np.tile(power_law, 2), rtol=1e-5)


@pytest.mark.parametrize("name", ["learned_start", "slstm"])
def test_learned_start_begins_sequences_and_follows_resets(name):
    cell = CELLS[name]
    params = random_params(cell, 0)
    xs = normal(1, (B, T, *cell.input_shape))
    start = cell.initial_state(params, (B,))
    np.testing.assert_array_equal(start.h[1], params.initial_h)
    np.testing.assert_array_equal(start.c[1], params.initial_c)
    reset = jnp.zeros((B, T), bool).at[:, 2].set(True)
    options = dict(lengths=jnp.array([0, T, T]), reset=reset)
    ours = lj.scan(cell, params, xs, **options)
    assert_close(ours, lj.scan(cell, params, xs, start, reset_state=start, **options))
    np.testing.assert_array_equal(ours[0].h[0], params.initial_h)
    assert_close(ours[1][1:, 2:], lj.scan(cell, params, xs[1:, 2:])[1])
    grads = jax.grad(lambda p: lj.scan(cell, p, xs, **options)[0].h[0].sum())(params)
    np.testing.assert_array_equal(grads.initial_h, 1)


def test_shorthand_fits_peepholes_and_a_learned_start():
    cell = lj.LSTMCell(3, 4, peephole=True, learn_initial_state=True)
    params, xs = random_params(cell, 0), normal(1, (B, T, 3))
    assert_close(lj.lstm(params, xs), lj.scan(cell, params, xs))


def test_only_the_standard_steps_are_called_standard():
    assert all(cell.standard for cell in (CELLS["projection"], CELLS["learned_start"]))
    names = ("NIG", "peephole", "norm_ba", "activations", "clip", "cell_clip", "heads")
    assert not any(CELLS[name].standard for name in names)
    assert lj.LSTMCell(2, 3, variant="NP") == lj.LSTMCell(2, 3)


def test_variants_have_no_weights_for_gates_they_have_not():
    for variant, gates in {"NIG": 3, "NFG": 3, "NOG": 3, "CIFG": 3, "FGR": 4}.items():
        cell = lj.LSTMCell(2, 5, variant=variant, peephole=True, forget_bias=2.0)
        params = cell.init(jax.random.key(0))
        assert params.kernel.shape == (2, gates * 5)
        assert params.peephole.shape == (gates - 1, 5)
        assert params.bias.sum() == (0 if variant in ("NFG", "CIFG") else 10)


BAD = {
    "variant": (dict(variant="LSTM2"), "variant: expected one of None, 'NIG'"),
    "layer_norm": (dict(layer_norm="batch"), "layer_norm: expected one of"),
    "heads": (dict(num_heads=2), "num_heads: expected a divisor of hidden_size = 5"),
    "heads_and_projection": (
        dict(num_heads=5, proj_size=3),
        "num_heads: expected a divisor of proj_size = 3, got 5",
    ),
    "peephole": (dict(variant="NP", peephole=True), "peephole: expected False with"),
    "clip": (dict(clip=0.0), "clip: expected a limit above 0"),
    "cell_clip": (dict(cell_clip=-1.0), "cell_clip: expected a limit above 0"),
}


@pytest.mark.parametrize("options, message", BAD.values(), ids=BAD)
def test_cell_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        lj.LSTMCell(3, 5, **options)


WRONG_TYPES = {
    "use_bias": ("no", "use_bias: expected True or False, got 'no' of type str"),
    "peephole": (1, "peephole: expected True or False, got 1 of type int"),
    "forget_bias": ("one", "forget_bias: expected a number, got 'one'"),
    "dtype": ("nonsense", "dtype: expected a floating dtype such as .*'?nonsense"),
    "param_dtype": (jnp.int32, "param_dtype: expected a floating dtype"),
    "kernel_init": (
        jax.nn.initializers.he_normal,
        r"jax.nn.initializers.he_normal, which makes one. Call it: kernel_init=he_norm",
    ),
    "recurrent_init": (
        jax.nn.initializers.orthogonal,
        r"recurrent_init: expected an initializer, got .*orthogonal\(\)",
    ),
    "bias_init": ("zeros", "bias_init: expected a function such as .*, got 'zeros'"),
}


@pytest.mark.parametrize("name", WRONG_TYPES)
@pytest.mark.parametrize("make", [lj.LSTMCell, lj.LSTM], ids=["cell", "layers"])
def test_options_of_a_wrong_type_are_refused(make, name):
    value, message = WRONG_TYPES[name]
    with pytest.raises(TypeError, match=message):
        make(3, 5, **{name: value})


def test_flags_of_stacks_and_numbers_that_are_none_are_refused():
    for name in ("bidirectional", "residual", "skip"):
        with pytest.raises(TypeError, match=f"{name}: expected True or False, got 1"):
            lj.LSTM(3, 5, **{name: 1})
    with pytest.raises(TypeError, match="bidirectional: expected True or False"):
        lj.Stack((lj.LSTMCell(3, 5),), bidirectional="yes")
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="forget_bias: expected a finite number"):
            lj.LSTMCell(3, 5, forget_bias=value)
    assert lj.LSTMCell(3, 5, use_bias=np.False_) == lj.LSTMCell(3, 5, use_bias=False)


def test_other_cells_refuse_bad_options():
    with pytest.raises(ValueError, match="num_heads: expected a divisor of hidden"):
        lj.SLSTMCell(3, 5, num_heads=2)
    with pytest.raises(ValueError, match="forget_gate: expected one of 'sigmoid'"):
        lj.SLSTMCell(3, 4, forget_gate="tanh")
    with pytest.raises(ValueError, match="input_shape: expected 1 to 3 spatial axes"):
        lj.ConvLSTMCell((3,), 4, 3)
    with pytest.raises(TypeError, match="input_shape: expected a tuple"):
        lj.ConvLSTMCell(3, 4, 3)
    with pytest.raises(ValueError, match="kernel_size: expected one size or 2"):
        lj.ConvLSTMCell((4, 4, 3), 4, (3, 3, 3))
    with pytest.raises(ValueError, match="kernel_size: expected at most the input"):
        lj.ConvLSTMCell((4, 4, 3), 4, 5, padding="valid")
    with pytest.raises(ValueError, match="padding: expected one of 'same', 'valid'"):
        lj.ConvLSTMCell((4, 4, 3), 4, 3, padding="causal")
    with pytest.raises(TypeError, match="gate_activation: expected a function"):
        lj.LSTMCell(3, 4, gate_activation="hard_sigmoid")
    with pytest.raises(TypeError, match="clip: expected a number or None, got '1'"):
        lj.LSTMCell(3, 4, clip="1")


def test_wrong_states_and_inputs_are_refused_in_words():
    cell = CELLS["slstm_exponential"]
    params, xs = random_params(cell, 0), normal(1, (B, T, 2))
    with pytest.raises(TypeError, match="expected an SLSTMState, got LSTMState"):
        lj.scan(cell, params, xs, lj.LSTMState(xs[:, 0], xs[:, 0]))
    conv = CELLS["conv2d"]
    with pytest.raises(ValueError, match=r"xs: expected shape \[\*batch, T, \*S, I\]"):
        lj.scan(conv, random_params(conv, 0), xs)
    with pytest.raises(ValueError, match="gate_kernel: expected None for the standard"):
        lj.lstm(random_params(CELLS["FGR"], 0), xs)


def test_checkpoint_every_is_a_number_of_steps_or_the_square_root():
    params, xs = random_params(CELLS["one"], 0), normal(1, (B, T, 1))
    with pytest.raises(ValueError, match="checkpoint_every: expected one of 'sqrt'"):
        lj.lstm(params, xs, checkpoint_every="half")
    with pytest.raises(ValueError, match="checkpoint_every: expected at least 1"):
        lj.lstm(params, xs, checkpoint_every=0)
