import copy
import dataclasses
import functools
import json
import multiprocessing
import pickle
import types
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers

import lstm_jax as lj
from lstm_jax.descriptions import base as description
from lstm_jax.descriptions import functions
from lstm_jax.initializers import glorot_uniform, orthogonal
from tests.common import normal, random_inputs, random_params


@jax.jit
def steep_sigmoid(x):
    return jax.nn.sigmoid(3 * x)


@jax.custom_jvp
def spike(x):
    return (x > 0).astype(x.dtype)


spike.defjvps(lambda tangent, _, x: tangent / (1 + jnp.abs(x)))


@jax.custom_vjp
def halved(x):
    return x / 2


halved.defvjp(lambda x: (x / 2, None), lambda _, given: (given / 3,))


def plain_activation(x):
    return jnp.arctan(x)


def small(key, shape, dtype=jnp.float32):
    return 0.01 * jax.random.normal(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class Scaled(lj.LSTMCell):
    """A cell of a user's, with fields of its own."""

    scale: float = 1.0
    squash: Any = jnp.tanh
    sizes: tuple[int, ...] = ()

    def update(self, params, state, z, r):
        return super().update(params, state, self.scale * self.squash(z), r)


@dataclasses.dataclass(frozen=True)
class Derived(lj.LSTMCell):
    """A cell of a user's with fields that are no options."""

    doubled: int = dataclasses.field(init=False, repr=False)
    inner: Any = dataclasses.field(init=False, repr=False)

    INIT_ONLY: ClassVar = ("kernel_init",)

    def __post_init__(self):
        object.__setattr__(self, "doubled", 2 * self.hidden_size)
        inner = lj.LSTMCell(3, 5, kernel_init=self.kernel_init)
        object.__setattr__(self, "inner", inner)
        super().__post_init__()


class Doubled(lj.LSTMCell):
    """A cell of a user's whose steps read what others only begin with."""

    def update(self, params, state, z, r):
        return super().update(params, state, z + self.forget_bias, r)


ACTIVATIONS = (
    jax.nn.relu,
    jax.nn.relu6,
    jax.nn.gelu,
    jax.nn.hard_sigmoid,
    jax.nn.hard_tanh,
    jax.nn.softplus,
    jax.nn.silu,
    jnp.sin,
    jax.scipy.special.erf,
    steep_sigmoid,
    spike,
    plain_activation,
    functools.partial(jax.nn.leaky_relu, negative_slope=0.2),
    functools.partial(jax.nn.elu, 0.5),
)
DESCRIPTIONS = {
    "lstm": lj.LSTM(3, 5),
    "lstm_options": lj.LSTM(
        3,
        [4, 6],
        bidirectional=True,
        zoneout_c=(0.1, 0.0),
        variant=("CIFG", None),
        dtype="bfloat16",
        kernel_init=small,
        gate_activation=jax.nn.hard_sigmoid,
    ),
    "slstm_layers": lj.LSTM(3, 4, 2, variant="sLSTM", num_heads=2),
    "cell": lj.LSTMCell(3, 5),
    "cell_options": lj.LSTMCell(
        3, 6, proj_size=4, layer_norm="ba", clip=2, param_dtype=jnp.bfloat16
    ),
    "slstm": lj.SLSTMCell(3, 4, num_heads=2, kernel_init=initializers.ones),
    "conv": lj.ConvLSTMCell([8, 6, 3], 2, 3, padding="valid", peephole=True),
    "regularized": lj.Regularized(lj.LSTMCell(3, 5), recurrent_dropout=0.2),
    "stack": lj.Stack([lj.LSTMCell(3, 4, variant="CIFG"), lj.SLSTMCell(4, 2)]),
    "nested": lj.Stack(
        [
            lj.Regularized(lj.LSTMCell(3, 4), zoneout_h=0.5),
            lj.Regularized(lj.SLSTMCell(8, 4), drop_connect=0.1),
        ],
        bidirectional=True,
    ),
    "own": Scaled(3, 5, scale=0.5, squash=jax.nn.relu, sizes=[1, 2]),
    "own_inside": lj.Stack((Scaled(3, 5, sizes=(4,)), lj.LSTMCell(5, 5))),
} | {
    f"activation_{n}": lj.LSTM(
        3, 5, candidate_activation=function, recurrent_init=small
    )
    for n, function in enumerate(ACTIVATIONS)
}
# dataclasses.asdict can't copy this one: JAX's class can't be copied.
UNCOPIED = {"custom_vjp": lj.LSTM(3, 5, output_activation=halved)}
DESCRIPTIONS |= UNCOPIED
each_description = pytest.mark.parametrize("name", DESCRIPTIONS)
# One of each kind: a function more or less makes no difference to the arrays.
each_kind = pytest.mark.parametrize(
    "name", [name for name in DESCRIPTIONS if not name.startswith("activation")]
)


def cells_of(model):
    return getattr(model, "cells", (model,))


def choices(model):
    """Which implementation runs each cell, and whether it is the standard one."""
    return [
        (
            lj.resolve_implementation(
                cell, random_params(cell, 1), random_inputs(cell, 2, (2,), 3)
            ),
            getattr(cell, "standard", None),
        )
        for cell in cells_of(model)
    ]


def assert_same(made, model):
    assert made == model and model == made
    assert hash(made) == hash(model)
    assert type(made) is type(model)
    assert repr(made) == repr(model)
    for name in (field.name for field in dataclasses.fields(model)):
        assert type(getattr(made, name)) is type(getattr(model, name)), name
    assert choices(made) == choices(model)


@each_description
def test_a_pickled_description_is_equal(name):
    model = DESCRIPTIONS[name]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        made = pickle.loads(pickle.dumps(model, protocol))
        assert made is not model
        assert_same(made, model)


@each_description
def test_a_pickled_description_keeps_no_caches(name):
    model = DESCRIPTIONS[name]
    before = pickle.dumps(dataclasses.replace(model))
    hash(model), model.for_program(), cells_of(model)
    assert pickle.dumps(model) == before


@each_description
def test_copies_are_equal(name):
    model = DESCRIPTIONS[name]
    assert copy.copy(model) is model
    assert copy.deepcopy(model) is model
    assert copy.deepcopy({"model": [model]})["model"][0] is model
    assert_same(dataclasses.replace(model), model)


@pytest.mark.parametrize("name", [n for n in DESCRIPTIONS if n not in UNCOPIED])
def test_a_description_made_of_its_dict_is_equal(name):
    model = DESCRIPTIONS[name]
    fields = dataclasses.asdict(model)
    assert_same(type(model)(**fields), model)
    assert_same(type(model)(**copy.deepcopy(fields)), model)


def test_replace_changes_what_is_named():
    model = dataclasses.replace(lj.LSTM(3, 5, clip=1.0), hidden_size=7)
    assert model == lj.LSTM(3, 7, clip=1.0) != lj.LSTM(3, 5, clip=1.0)
    with pytest.raises(ValueError, match="hidden_size"):
        dataclasses.replace(model, hidden_size=0)


def seen_by_a_child(models):
    """What another process says of descriptions that it makes itself too."""
    pairs = [(models[name], model) for name, model in DESCRIPTIONS.items()]
    return (
        [one == other and hash(one) == hash(other) for one, other in pairs],
        [repr(model) for model in models.values()],
        [choices(model) for model in models.values()],
        models,
    )


def test_descriptions_go_to_a_spawned_process_and_back():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        equal, shown, chosen, back = pool.apply(seen_by_a_child, (DESCRIPTIONS,))
    assert len(equal) == len(DESCRIPTIONS) and all(equal)
    assert shown == [repr(model) for model in DESCRIPTIONS.values()]
    assert chosen == [choices(model) for model in DESCRIPTIONS.values()]
    assert back == DESCRIPTIONS


def test_a_pair_of_description_and_parameters_is_pickled():
    model = lj.LSTM(3, 5)
    params = model.init(jax.random.key(0))
    made, again = pickle.loads(pickle.dumps((model, params)))
    assert made == model
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params, again))


@pytest.mark.parametrize(
    "function",
    [lambda x: x, jax.jit(lambda x: x), initializers.normal(0.02)],
    ids=["lambda", "compiled", "factory"],
)
def test_pickle_names_a_function_that_has_no_name(function):
    model = lj.LSTM(3, 5, kernel_init=function)
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda|<locals>"):
        pickle.dumps(model)
    assert copy.deepcopy(model) == model == lj.LSTM(**dataclasses.asdict(model))


SPELLINGS = {
    "tanh_of_lax": ({"output_activation": jax.lax.tanh}, {}),
    "tanh_of_nn": ({"candidate_activation": jax.nn.tanh}, {}),
    "logistic": ({"gate_activation": jax.lax.logistic}, {}),
    "expit": ({"gate_activation": jax.scipy.special.expit}, {}),
    "compiled_twice": ({"gate_activation": jax.jit(jax.nn.sigmoid)}, {}),
    "inside": ({"gate_activation": jax.nn.sigmoid.__wrapped__}, {}),
    "swish": (
        {"gate_activation": jax.nn.swish},
        {"gate_activation": jax.nn.silu},
    ),
    "compiled_plain": (
        {"gate_activation": jax.jit(plain_activation)},
        {"gate_activation": plain_activation},
    ),
    "copied_relu": (
        {"gate_activation": copy.deepcopy(jax.nn.relu)},
        {"gate_activation": jax.nn.relu},
    ),
    "copied_own": (
        {"gate_activation": copy.deepcopy(steep_sigmoid)},
        {"gate_activation": steep_sigmoid},
    ),
    "partials": (
        {"gate_activation": functools.partial(copy.deepcopy(jax.nn.elu), alpha=0.5)},
        {"gate_activation": functools.partial(jax.nn.elu, alpha=0.5)},
    ),
    "dtype_word": ({"dtype": "float32"}, {"dtype": jnp.float32}),
    "dtype_of_numpy": ({"dtype": np.float32}, {"dtype": np.dtype("float32")}),
    "bfloat16": ({"dtype": "bfloat16"}, {"dtype": jnp.bfloat16}),
    "param_dtype": ({"param_dtype": "float32"}, {}),
    "float": ({"param_dtype": float}, {"param_dtype": jnp.result_type(float)}),
    "default_dtype": ({"dtype": None}, {}),
    "integers": ({"num_heads": np.int64(1), "clip": np.float64(2)}, {"clip": 2.0}),
    "flags": ({"peephole": np.True_, "use_bias": np.bool_(False)}, None),
    "forget_bias": ({"forget_bias": np.float32(0.5)}, {"forget_bias": 0.5}),
    "words": ({"variant": np.str_("CIFG")}, {"variant": "CIFG"}),
}


@pytest.mark.parametrize("cls", [lj.LSTM, lj.LSTMCell])
@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_are_one(cls, name):
    spelled, plain = SPELLINGS[name]
    if plain is None:
        plain = {"peephole": True, "use_bias": False}
    assert_same(cls(3, 5, **spelled), cls(3, 5, **plain))


def test_lists_and_numbers_of_numpy_are_one_with_tuples_and_python():
    rates = [np.float64(0.25), 0]
    model = lj.LSTM(
        np.int32(3), [np.int64(4), 5], zoneout_h=rates, dropout=np.float32(0.5)
    )
    assert_same(model, lj.LSTM(3, (4, 5), zoneout_h=(0.25, 0), dropout=0.5))
    conv = lj.ConvLSTMCell([8, np.int8(6), 3], 2, [3, 1], strides=np.int64(2))
    assert_same(conv, lj.ConvLSTMCell((8, 6, 3), 2, (3, 1), strides=(2, 2)))


def test_wrong_options_are_still_refused_in_words():
    with pytest.raises(TypeError, match="hidden_size: expected an integer"):
        lj.LSTMCell(3, np.float32(5))
    with pytest.raises(TypeError, match="dtype: expected a floating dtype"):
        lj.LSTMCell(3, 5, dtype="int32")
    with pytest.raises(ValueError, match="variant"):
        lj.LSTM(3, 5, variant=["CIFG"] * 1 + ["none such"], num_layers=2)
    with pytest.raises(TypeError, match="gate_activation: expected a function"):
        lj.LSTMCell(3, 5, gate_activation="sigmoid")


def other_rule():
    """JAX's relu with another derivative."""
    function = jax.custom_jvp(jax.nn.relu.fun)
    function.defjvps(lambda tangent, _, x: 2 * tangent)
    return function


def other_backward():
    """This module's ``halved`` with another derivative."""
    function = jax.custom_vjp(halved.fun)
    function.defvjp(halved.fwd, lambda _, given: (given / 4,))
    return function


@functools.wraps(jax.nn.sigmoid)
def disguised(x):
    return x


def with_default(x, slope=0.1):
    return slope * x


def with_default_last(slope, x):
    return slope * x


OTHERS = {
    "rule": (other_rule(), jax.nn.relu),
    "backward": (other_backward(), halved),
    "no_rule": (jax.nn.relu.fun, jax.nn.relu),
    "wraps": (disguised, jax.nn.sigmoid),
    "vmap": (jax.vmap(jax.nn.sigmoid), jax.nn.sigmoid),
    "partial": (
        functools.partial(jax.nn.elu, alpha=0.5),
        functools.partial(jax.nn.elu, alpha=0.25),
    ),
    # NumPy's numbers have a dtype, which they give to what they are multiplied with.
    "number": (
        functools.partial(jax.nn.elu, alpha=np.float32(0.5)),
        functools.partial(jax.nn.elu, alpha=0.5),
    ),
    "number_by_place": (
        functools.partial(with_default_last, np.float32(2)),
        functools.partial(with_default_last, 2.0),
    ),
    "lambdas": (lambda x: x, lambda x: x),
}


@pytest.mark.parametrize("name", OTHERS)
def test_functions_that_differ_stay_what_they_are(name):
    one, other = OTHERS[name]
    assert lj.LSTM(3, 5, gate_activation=one) != lj.LSTM(3, 5, gate_activation=other)
    x = normal(1, (4,))
    kept = lj.LSTM(3, 5, gate_activation=one).gate_activation
    assert (kept(x) == one(x)).all()
    slope, expected = (jax.vjp(f, x)[1](x)[0] for f in (kept, one))
    assert (slope == expected).all()


def test_a_function_defined_anew_is_another():
    old = types.FunctionType(with_default.__code__, globals(), "with_default", (0.2,))
    old.__module__, old.__qualname__ = __name__, "with_default"
    model = lj.LSTM(3, 5, gate_activation=old)
    assert model.gate_activation is old
    assert model != lj.LSTM(3, 5, gate_activation=with_default)


def rebuilt(value, memo=None):
    """A function as a process finds it that was sent its code, and all it refers to."""
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, tuple):
        return tuple(rebuilt(part, memo) for part in value)
    if isinstance(value, jax.custom_jvp):
        made = memo[id(value)] = jax.custom_jvp(rebuilt(value.fun, memo))
        made.jvp = rebuilt(value.jvp, memo)
        return made
    if not isinstance(value, types.FunctionType):
        wrapped = getattr(value, "__wrapped__", None)
        return value if wrapped is None else jax.jit(rebuilt(wrapped, memo))
    cells = tuple(types.CellType() for _ in value.__closure__ or ())
    made = memo[id(value)] = types.FunctionType(
        value.__code__.replace(),
        dict(value.__globals__),
        value.__name__,
        value.__defaults__,
        cells,
    )
    made.__module__, made.__qualname__ = value.__module__, value.__qualname__
    made.__kwdefaults__ = value.__kwdefaults__
    for cell, old in zip(cells, value.__closure__ or (), strict=True):
        cell.cell_contents = rebuilt(old.cell_contents, memo)
    return made


@pytest.mark.parametrize(
    "function",
    [
        jax.nn.sigmoid,
        jnp.tanh,
        jax.nn.relu,
        jax.nn.gelu,
        jax.nn.hard_sigmoid,
        initializers.zeros,
        steep_sigmoid,
        spike,
        plain_activation,
        glorot_uniform,
    ],
    ids=functions.describe,
)
def test_functions_rebuilt_from_their_code_are_the_same(function):
    made = rebuilt(function)
    assert made is not function
    assert lj.LSTM(3, 5, gate_activation=made).gate_activation is function


def test_a_copy_of_a_local_function_is_the_same():
    @jax.jit
    def compiled(x):
        return x / 3

    @jax.custom_jvp
    def ruled(x):
        return x / 3

    ruled.defjvps(lambda tangent, _, x: tangent)
    for function in (compiled, ruled):
        model = lj.LSTM(3, 5, gate_activation=function)
        assert lj.LSTM(**dataclasses.asdict(model)) == model
        partial = functools.partial(function)
        model = lj.LSTM(3, 5, gate_activation=partial)
        assert lj.LSTM(**dataclasses.asdict(model)) == model


@pytest.mark.parametrize(
    "mine, factory",
    [
        (glorot_uniform, initializers.glorot_uniform),
        (orthogonal, initializers.orthogonal),
    ],
)
@pytest.mark.parametrize("shape", [(3, 20), (5, 20), (7, 3)])
def test_initializers_are_those_of_jax(mine, factory, shape):
    key = jax.random.key(3)
    assert (mine(key, shape) == factory()(key, shape, jnp.float32)).all()
    assert mine(key, shape).dtype == jnp.float32
    assert mine(key, shape, jnp.complex64).dtype == jnp.complex64


def test_hash_and_equality_by_class_and_compared_fields():
    @dataclasses.dataclass(frozen=True)
    class Noted(lj.LSTMCell):
        note: Any = dataclasses.field(default=None, compare=False)

    assert Noted(3, 5) != lj.LSTMCell(3, 5)
    assert Noted(3, 5, note=[1]) == Noted(3, 5, note={})
    assert hash(Noted(3, 5, note=[1])) == hash(Noted(3, 5, note={}))
    assert Noted(3, 5) != Noted(3, 6)
    assert lj.LSTM(3, 5) != lj.Stack((lj.LSTMCell(3, 5),))
    assert lj.LSTMCell(3, 5) != (3, 5) and (lj.LSTMCell(3, 5) == 1) is False
    assert {lj.LSTM(3, 5): 1}[lj.LSTM(3, 5, param_dtype="float32")] == 1


def test_a_field_that_the_constructor_makes_is_made_again():
    made = Derived(3, 5, kernel_init=small)
    assert made.doubled == 10 and "doubled" not in repr(made)
    assert pickle.loads(pickle.dumps(made)) == dataclasses.replace(made) == made
    assert lj.Stack((made,)).for_program().cells == (Derived(3, 5),)


def test_repr_says_what_differs_from_the_defaults():
    assert repr(lj.LSTM(3, 5)) == "LSTM(3, 5)"
    model = lj.LSTM(
        3, 5, num_layers=2, gate_activation=jax.nn.hard_sigmoid, dtype=jnp.bfloat16
    )
    assert repr(model) == (
        "LSTM(3, 5, num_layers=2, dtype='bfloat16', "
        "gate_activation=jax.nn.hard_sigmoid)"
    )
    stack = lj.Stack((lj.Regularized(lj.LSTMCell(3, 8), zoneout_h=0.5),))
    assert repr(stack) == "Stack((Regularized(LSTMCell(3, 8), zoneout_h=0.5),))"
    assert repr(lj.LSTMCell(3, 5, forget_bias=np.float32(0.5))) == (
        "LSTMCell(3, 5, forget_bias=0.5)"
    )
    assert repr(Scaled(3, 5, scale=2.0)) == "Scaled(3, 5, scale=2.0)"
    unnamed = lj.LSTMCell(3, 5, gate_activation=lambda x: x)
    assert "gate_activation=<function test_repr" in repr(unnamed)


@each_description
def test_repr_is_what_makes_it(name):
    import lstm_jax
    import tests

    model = DESCRIPTIONS[name]
    names = vars(lj) | {"jax": jax, "functools": functools, "Scaled": Scaled}
    made = eval(repr(model), names | {"lstm_jax": lstm_jax, "tests": tests})
    assert_same(made, model)


def counted():
    """A small compiled function of a description, and how often it was compiled."""
    compiled = []

    @functools.partial(jax.jit, static_argnames="model")
    def run(model, x):
        compiled.append(model)
        return 2 * x

    return run, compiled


FRESH = {
    "kernel_init": lambda: initializers.normal(0.02),
    "recurrent_init": lambda: lambda key, shape, dtype: jnp.ones(shape, dtype),
    "bias_init": lambda: initializers.constant(0.5),
}


@pytest.mark.parametrize("option", FRESH)
@pytest.mark.parametrize(
    "make",
    [
        lambda options: lj.LSTM(3, 4, 2, zoneout_h=0.5, **options),
        lambda options: lj.LSTM(3, 4, 2, variant=("sLSTM", None), **options),
        lambda options: lj.LSTMCell(3, 4, **options),
        lambda options: lj.SLSTMCell(3, 4, **options),
        lambda options: lj.ConvLSTMCell((5, 3), 4, 3, **options),
        lambda options: lj.Regularized(lj.LSTMCell(3, 4, **options), zoneout_c=0.5),
        lambda options: lj.Stack(
            (lj.SLSTMCell(3, 4), lj.Regularized(lj.LSTMCell(4, 4, **options)))
        ),
    ],
    ids=["LSTM", "sLSTM", "LSTMCell", "SLSTMCell", "Conv", "Regularized", "Stack"],
)
def test_new_initializers_compile_nothing(make, option):
    run, compiled = counted()
    plain = make({})
    run(plain.for_program(), 1.0)
    for _ in range(3):
        model = make({option: FRESH[option](), "param_dtype": jnp.bfloat16})
        assert model != plain
        assert model.for_program() == plain.for_program()
        assert hash(model.for_program()) == hash(plain.for_program())
        for cell, other in zip(cells_of(model), cells_of(plain), strict=True):
            assert description.program_of(cell) == description.program_of(other)
        run(model.for_program(), 1.0)
    assert len(compiled) == 1


@each_description
def test_copies_compile_nothing(name):
    run, compiled = counted()
    model = DESCRIPTIONS[name]
    fields = dataclasses.fields(model)
    run(model.for_program(), 1.0)
    for made in (
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        dataclasses.replace(model),
        type(model)(**{f.name: getattr(model, f.name) for f in fields}),
    ):
        run(made.for_program(), 1.0)
    assert len(compiled) == 1


@each_kind
def test_the_description_for_a_program_takes_the_same_steps(name):
    model = DESCRIPTIONS[name]
    made = model.for_program()
    layered = hasattr(model, "cells")
    assert type(made) is (lj.Stack if layered else type(model))
    assert made.for_program() is made and model.for_program() is made
    assert choices(made) == choices(model)
    for cell, other in zip(cells_of(made), cells_of(model), strict=True):
        params, xs = random_params(other, 1), random_inputs(other, 2, (2,), 3)
        ours, theirs = (lj.scan(one, params, xs)[1] for one in (cell, other))
        assert (ours == theirs).all()


def test_the_description_for_a_program_is_itself_by_default():
    for model in (lj.Stack((lj.LSTMCell(3, 5),)), lj.SLSTMCell(3, 4)):
        assert model.for_program() is model
    other = lj.LSTMCell(3, 5, kernel_init=small, forget_bias=2.0, clip=1.0)
    assert other.for_program() == lj.LSTMCell(3, 5, clip=1.0)


def test_a_cell_of_a_user_keeps_what_its_steps_may_read():
    cell = Doubled(3, 5, forget_bias=2.0)
    assert cell.for_program() is cell
    assert lj.Stack((cell,)).for_program().cells[0].forget_bias == 2.0
    params, xs = random_params(cell, 1), random_inputs(cell, 2, (2,), 4)
    one = lj.scan(cell.for_program(), params, xs)[1]
    other = lj.scan(Doubled(3, 5), params, xs)[1]
    assert (one != other).any()

    class Plain(lj.LSTMCell):
        INIT_ONLY: ClassVar = ("kernel_init",)

    assert Plain(3, 5, kernel_init=small).for_program() == Plain(3, 5)
    kept = Plain(3, 5, forget_bias=2.0, kernel_init=small).for_program()
    assert kept == Plain(3, 5, forget_bias=2.0)


@pytest.mark.parametrize("name", [n for n in DESCRIPTIONS if "own" not in n])
def test_config_goes_through_json_and_back(name):
    model = DESCRIPTIONS[name]
    given = {
        f.__name__: f for f in (steep_sigmoid, spike, halved, plain_activation, small)
    }
    config = json.loads(json.dumps(model.to_config(given), allow_nan=False))
    assert config["class"] == type(model).__name__ and config["format"] == 1
    assert set(config) - {"class", "format"} == {
        field.name for field in dataclasses.fields(model)
    }
    assert_same(lj.from_config(config, functions=given), model)
    assert_same(type(model).from_config(config, functions=given), model)
    assert_same(lj.from_config(model.to_config(given), functions=given), model)


def test_config_is_plain():
    config = lj.LSTMCell(
        3, 5, dtype=jnp.bfloat16, gate_activation=jax.lax.tanh, clip=np.float32(2)
    ).to_config()
    assert config["dtype"] == "bfloat16" and config["param_dtype"] == "float32"
    assert config["gate_activation"] == {"function": "jax.numpy.tanh"}
    assert config["recurrent_init"] == {"function": "lstm_jax.initializers.orthogonal"}
    assert config["clip"] == 2.0 and config["input_size"] == 3
    nested = lj.Stack((lj.Regularized(lj.LSTMCell(3, 5)),)).to_config()
    assert nested["cells"][0]["class"] == "Regularized"
    assert nested["cells"][0]["cell"]["hidden_size"] == 5


def test_config_of_an_older_version_gets_defaults():
    config = lj.LSTM(3, 5).to_config()
    del config["learn_initial_state"], config["gate_activation"]
    assert lj.from_config(config) == lj.LSTM(3, 5)


UNWRITABLE = {
    "lambda": (
        lambda: lj.LSTM(3, 5, gate_activation=lambda x: x),
        r"^gate_activation: .*<lambda>.*functions=\{'gate_activation'",
    ),
    "own": (
        lambda: lj.Stack((lj.LSTMCell(3, 5, clip=1.0, kernel_init=small),)),
        r"^cells\[0\].kernel_init: .*test_description.small",
    ),
    "factory": (
        lambda: lj.LSTM(3, 5, bias_init=initializers.normal(0.02)),
        r"^bias_init: .*normal.*made by a call of jax.nn.initializers",
    ),
    "partial": (
        lambda: lj.LSTM(3, 5, gate_activation=functools.partial(with_default, slope=2)),
        r"^gate_activation: .*with_default",
    ),
    "class": (lambda: Scaled(3, 5), r"^to_config: expected one of .*LSTMCell.*Scaled"),
    "inside": (
        lambda: lj.Regularized(Doubled(3, 5)),
        r"^cell: expected one of .*Doubled",
    ),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_config_refuses_what_has_no_name(name):
    make, message = UNWRITABLE[name]
    with pytest.raises(ValueError, match=message):
        make().to_config()


UNREADABLE = {
    "class": ({"class": "GRU"}, r"\['class'\]: expected one of .*LSTM.*'GRU'"),
    "no_class": ({"class": None}, r"\['class'\]: expected one of"),
    "base": ({"class": "Layers"}, r"\['class'\]: expected one of"),
    "format": ({"format": 2}, r"\['format'\]: expected a version up to 1.*got 2"),
    "no_format": ({"format": None}, r"\['format'\]"),
    "true": ({"format": True}, r"\['format'\]"),
    "field": ({"hiden_size": 3}, "no field 'hiden_size'. It has .*hidden_size"),
    "function": (
        {"gate_activation": {"function": "os.system"}},
        r"\['gate_activation'\]: expected the name.*\(none\), got 'os.system'",
    ),
    "function_value": (
        {"gate_activation": {"function": ["jax.nn.relu"]}},
        r"\['gate_activation'\]: expected the name of a function",
    ),
    "function_part": (
        {"gate_activation": {"function": "jax.nn.relu", "alpha": 2}},
        r"\['gate_activation'\]: expected the name of a function",
    ),
    "dict": ({"clip": {"value": 1}}, r"\['clip'\]\['class'\]: expected one of"),
    "option": ({"hidden_size": 0}, "hidden_size: expected at least 1"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_config_refuses_what_it_does_not_know(name):
    change, message = UNREADABLE[name]
    with pytest.raises(ValueError, match=message):
        lj.from_config(lj.LSTMCell(3, 5).to_config() | change)


def test_config_refuses_other_objects():
    config = lj.LSTM(3, 5).to_config()
    with pytest.raises(TypeError, match="config: expected a dict"):
        lj.from_config(json.dumps(config))
    with pytest.raises(ValueError, match="expected 'LSTMCell', got 'LSTM'"):
        lj.LSTMCell.from_config(config)
    with pytest.raises(ValueError, match="expected 'Doubled', got 'LSTMCell'"):
        Doubled.from_config(lj.LSTMCell(3, 5).to_config())
    del config["hidden_size"]
    with pytest.raises(ValueError, match="expected the field 'hidden_size' of LSTM"):
        lj.from_config(config)
    stack = lj.Stack((lj.LSTMCell(3, 5),)).to_config()
    stack["cells"][0]["format"] = 7
    with pytest.raises(ValueError, match=r"config\['cells'\]\[0\]\['format'\]"):
        lj.from_config(stack)


def test_config_refuses_wrong_functions():
    model = lj.LSTM(3, 5)
    with pytest.raises(TypeError, match="functions: expected a dict"):
        model.to_config([small])
    with pytest.raises(TypeError, match="functions: expected functions by name"):
        model.to_config({"small": 3})
    with pytest.raises(ValueError, match="'jax.nn.sigmoid' is the name of another"):
        lj.from_config(model.to_config(), functions={"jax.nn.sigmoid": small})


def test_config_takes_functions_by_the_names_given():
    normal_init = initializers.normal(0.02)
    model = lj.LSTM(3, 5, kernel_init=normal_init, gate_activation=jax.jit(disguised))
    given = {"normal": normal_init, "mine": jax.jit(disguised)}
    config = model.to_config(given)
    assert config["kernel_init"] == {"function": "normal"}
    assert config["gate_activation"] == {"function": "mine"}
    assert lj.from_config(config, functions=given) == model
    with pytest.raises(ValueError, match=r"one of functions= \('mine'\)"):
        lj.from_config(config, functions={"mine": given["mine"]})


@each_kind
def test_count_params_is_what_init_makes(name):
    model = DESCRIPTIONS[name]
    made = model.init(jax.random.key(0))
    assert model.count_params() == sum(leaf.size for leaf in jax.tree.leaves(made))


def test_a_dict_that_could_be_of_two_classes_is_refused():
    class Twin(lj.SLSTMCell):
        pass

    model = lj.Stack((Twin(3, 4),))
    with pytest.raises(ValueError, match="^cells: expected a description.*SLSTMCell"):
        lj.Stack(**dataclasses.asdict(model))


def test_linen_and_nnx_modules_hold_descriptions():
    from flax import nnx

    from lstm_jax import linen
    from lstm_jax.nnx import LSTM

    module = LSTM(3, 5, num_layers=2, rngs=nnx.Rngs(0))
    assert copy.deepcopy(module).model == module.model
    assert linen.LSTM(3, [4, 5]).model == lj.LSTM(3, (4, 5))
