"""Random cases and comparisons that several test modules share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax as lj
from tests.oracles import cells as oracle

# Largest difference, relative to the largest value, by dtype of the computation. The
# float64 loop is exact to rounding, so this is the rounding of what is tested.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 2e-2, "float16": 4e-3}


def relative_error(actual, expected):
    """The largest difference, relative to the largest expected value."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    if not expected.size:
        return 0.0
    scale = max(np.abs(expected).max(), 1e-3)
    return np.abs(actual - expected).max() / scale


def assert_close(actual, expected, dtype="float32", name=""):
    """Compares two pytrees of equal structure, leaf by leaf, by name."""
    expected_leaves, structure = jax.tree.flatten_with_path(expected)
    actual_leaves, actual_structure = jax.tree.flatten_with_path(actual)
    assert structure == actual_structure
    for (path, a), (_, e) in zip(actual_leaves, expected_leaves, strict=True):
        error = relative_error(a, e)
        where = name + jax.tree_util.keystr(path)
        assert error <= TOLERANCE[dtype], f"{where}: relative error {error:.2e}"


def assert_rounded_otherwise(actual, expected, dtype, name=""):
    """Compares results and gradients of one computation, rounded in other places.

    In half precision a gradient carries the rounding of larger ones that it was made
    from, and is compared with the largest of its kind.
    """
    if dtype not in ("bfloat16", "float16"):
        return assert_close(actual, expected, dtype, name)
    for kind, (some, right) in enumerate(zip(actual, expected, strict=True)):
        wide = lambda tree: [np.asarray(a, np.float64) for a in jax.tree.leaves(tree)]
        largest = max(np.abs(leaf).max() for leaf in wide(right))
        for a, e in zip(wide(some), wide(right), strict=True):
            assert np.isfinite(a).all()
            error = np.abs(a - e).max() / largest
            assert error <= TOLERANCE[dtype], f"{name}[{kind}]: error {error:.2e}"


def normal(seed, shape, dtype="float32", scale=1.0):
    """Random values, made by NumPy so that every library can be given the same."""
    values = np.random.default_rng(_flat(seed)).standard_normal(shape) * scale
    return jnp.asarray(values, dtype)


def _flat(seed):
    """A seed of numbers in lists as one list."""
    if not isinstance(seed, (list, tuple)):
        return [seed]
    return [number for part in seed for number in _flat(part)]


def random_params(cell, seed, dtype="float32"):
    """Parameters with no zeros, so that nothing is hidden by one."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(cell.init, jax.random.key(0)))
    return structure.unflatten(
        normal([seed, n], leaf.shape, dtype, 0.5) for n, leaf in enumerate(leaves)
    )


def random_state(cell, seed, batch_shape, dtype="float32"):
    """A state with no zeros, and one that the cell could be in."""
    template = jax.eval_shape(lambda: cell.zero_state(batch_shape, dtype))
    leaves, structure = jax.tree.flatten(template)
    state = structure.unflatten(
        normal([seed, 99, n], leaf.shape, leaf.dtype, 0.5)
        for n, leaf in enumerate(leaves)
    )
    if hasattr(state, "n"):  # an sLSTM's normaliser is never negative
        state = state._replace(n=jnp.abs(state.n) + np.asarray(0.1, state.n.dtype))
    return state


def value_and_pullback(function, args, cotangents):
    """A function's value and the gradients for ``cotangents``, in one program."""

    def both(args, cotangents):
        out, pull = jax.vjp(function, *args)
        return out, pull(cotangents)

    return quick_jit(both)(args, cotangents)


def quick_jit(function):
    """Compiles a program that runs once: without LLVM's optimization, in 2/3 the time.

    What XLA fuses and how it orders sums is the same.
    """
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": "0"})


def random_controls(seed, batch_shape, length, names):
    """Random lengths (0 and T among them where there is room), masks and resets."""
    rng = np.random.default_rng(_flat([seed, 7]))
    controls = {}
    if "lengths" in names:
        lengths = rng.integers(0, length + 1, batch_shape)
        if lengths.size > 1:
            lengths.flat[0], lengths.flat[-1] = 0, length
        controls["lengths"] = lengths.astype(np.int32)
    if "mask" in names:
        controls["mask"] = rng.random((*batch_shape, length)) < 0.7
    if "reset" in names:
        controls["reset"] = rng.random((*batch_shape, length)) < 0.3
    return controls


def random_like(seed, tree):
    """Random values in the shapes and dtypes of a pytree."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(
        normal([seed, 5, n], leaf.shape, leaf.dtype) for n, leaf in enumerate(leaves)
    )


def fields(params):
    """Parameters of one layer and direction as the oracle takes them."""
    return {
        name: getattr(params, name)
        for name in ("kernel", "recurrent_kernel", "bias", "projection_kernel")
    }


def random_inputs(cell, seed, batch_shape, length, dtype="float32"):
    """Inputs of a cell, batch first."""
    return normal(seed, (*batch_shape, length, *input_shape(cell)), dtype)


def input_shape(cell):
    """That of one input; a cell of others may not say it."""
    return getattr(cell, "input_shape", None) or (cell.size,)


@dataclasses.dataclass(frozen=True)
class GRUCell:
    """A cell that is not ours: two pre-activations, dicts of params, state, outputs."""

    size: int

    def init(self, key):
        keys = jax.random.split(key, 2)
        shape = (self.size, 3 * self.size)
        return {
            n: jax.random.normal(k, shape) * 0.5
            for n, k in zip("wu", keys, strict=True)
        }

    def zero_state(self, batch_shape=(), dtype=jnp.float32):
        return {"h": jnp.zeros((*batch_shape, self.size), dtype)}

    def project(self, params, xs):
        return xs @ params["w"]

    def recur(self, params, state):
        return state["h"] @ params["u"]

    def update(self, params, state, z, r):
        (zr, zu, zn), (rr, ru, rn) = jnp.split(z, 3, -1), jnp.split(r, 3, -1)
        n = jnp.tanh(zn + jax.nn.sigmoid(zr + rr) * rn)
        u = jax.nn.sigmoid(zu + ru)
        h = (1 - u) * n + u * state["h"]
        return {"h": h}, {"out": h, "gate": u}


@dataclasses.dataclass(frozen=True)
class LeakyCell(lj.Cell):
    """A cell of others that derives from ours; its state is one array."""

    input_size: int
    size: int
    additive = True

    @property
    def input_shape(self):
        return (self.input_size,)

    @property
    def output_size(self):
        return self.size

    def init(self, key):
        keys = jax.random.split(key, 2)
        shapes = {"w": (self.input_size, self.size), "r": (self.size, self.size)}
        return {
            name: jax.random.normal(k, shape)
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def zero_state(self, batch_shape=(), dtype=jnp.float32):
        return jnp.zeros((*batch_shape, self.size), dtype)

    def project(self, params, xs):
        return xs @ params["w"]

    def recur(self, params, state):
        return state @ params["r"]

    def update(self, params, state, z, r):
        new = jnp.tanh(z + r)
        return (state + new) / 2, new


def standard_cases():
    """Standard LSTM cells, which every implementation must run."""
    return {
        "standard": lj.LSTMCell(3, 5),
        "projection": lj.LSTMCell(4, 6, proj_size=2),
        "no_bias": lj.LSTMCell(2, 3, use_bias=False),
        "one": lj.LSTMCell(1, 1),
        "odd": lj.LSTMCell(5, 19, proj_size=17),
    }


def cell_cases():
    """Every cell that the contract suite runs on. `oracle_step` has their equations."""
    cells = standard_cases()
    for variant in ("NIG", "NFG", "NOG", "NIAF", "NOAF", "CIFG", "FGR"):
        cells[variant] = lj.LSTMCell(2, 3, variant=variant, peephole=True)
    rates = dict(recurrent_dropout=0.3, zoneout_h=0.2, zoneout_c=0.4)
    return cells | {
        "NP": lj.LSTMCell(2, 3, variant="NP"),
        "peephole": lj.LSTMCell(3, 4, peephole=True, proj_size=2),
        "CIFG_plain": lj.LSTMCell(2, 3, variant="CIFG", use_bias=False),
        "FGR_projection": lj.LSTMCell(2, 3, variant="FGR", proj_size=2),
        "norm_haste": lj.LSTMCell(2, 3, layer_norm="haste"),
        "norm_ba": lj.LSTMCell(2, 4, layer_norm="ba", proj_size=2, variant="CIFG"),
        "activations": lj.LSTMCell(
            2,
            3,
            gate_activation=jax.nn.hard_sigmoid,
            candidate_activation=jax.nn.soft_sign,
            output_activation=jax.nn.relu,
        ),
        "clip": lj.LSTMCell(3, 4, clip=0.7, peephole=True),
        "cell_clip": lj.LSTMCell(3, 4, cell_clip=0.4),
        "heads": lj.LSTMCell(3, 6, num_heads=3),
        "heads_projection": lj.LSTMCell(3, 6, num_heads=2, proj_size=4, variant="CIFG"),
        "diagonal": lj.LSTMCell(2, 4, num_heads=4, variant="CIFG", peephole=True),
        "learned_start": lj.LSTMCell(2, 3, learn_initial_state=True),
        "slstm": lj.SLSTMCell(3, 6, num_heads=2, learn_initial_state=True),
        "slstm_exponential": lj.SLSTMCell(2, 3, forget_gate="exponential"),
        "minlstm": lj.MinLSTMCell(3, 5),
        "minlstm_positive": lj.MinLSTMCell(2, 3, positive=True, use_bias=False),
        "conv1d": lj.ConvLSTMCell((5, 2), 2, 2, padding="valid", dilation=2),
        "conv2d": lj.ConvLSTMCell((3, 2, 2), 2, (3, 2), strides=(2, 1), peephole=True),
        "conv3d": lj.ConvLSTMCell((2, 2, 3, 1), 1, 2, use_bias=False),
        "regularized": lj.Regularized(lj.LSTMCell(2, 3), input_dropout=0.5, **rates),
        "regularized_options": lj.Regularized(
            lj.LSTMCell(2, 6, proj_size=5, variant="NIAF", cell_clip=0.5, clip=1.5),
            output_dropout=0.4,
            **rates,
        ),
        "regularized_slstm": lj.Regularized(lj.SLSTMCell(2, 4), **rates),
        "own_gru": GRUCell(4),
        "own_leaky": LeakyCell(2, 3),
    }


def oracle_step(cell):
    """The NumPy step of a cell, with its options."""
    if isinstance(cell, lj.Regularized):
        rates = cell.zoneout_h, cell.zoneout_c
        return functools.partial(oracle.zoneout_step, oracle_step(cell.cell), *rates)
    if isinstance(cell, GRUCell):
        return oracle.gru_step
    if isinstance(cell, LeakyCell):
        return oracle.leaky_step
    if isinstance(cell, lj.SLSTMCell):
        exponential = cell.forget_gate == "exponential"
        return functools.partial(oracle.slstm_step, exponential=exponential)
    if isinstance(cell, lj.MinLSTMCell):
        return functools.partial(oracle.minlstm_step, positive=cell.positive)
    if isinstance(cell, lj.ConvLSTMCell):
        names = ("strides", "dilation", "padding")
        return functools.partial(
            oracle.conv_step, **{name: getattr(cell, name) for name in names}
        )
    functions = {
        jax.nn.sigmoid: oracle.sigmoid,
        jnp.tanh: np.tanh,
        jax.nn.hard_sigmoid: oracle.hard_sigmoid,
        jax.nn.soft_sign: oracle.softsign,
        jax.nn.relu: lambda x: np.maximum(x, 0),
    }
    return functools.partial(
        oracle.lstm_step,
        variant=cell.variant,
        gate=functions[cell.gate_activation],
        g_act=functions[cell.candidate_activation],
        h_act=functions[cell.output_activation],
        clip=cell.clip,
        cell_clip=cell.cell_clip,
    )
