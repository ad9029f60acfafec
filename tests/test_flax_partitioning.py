"""Initializers with metadata in modules, as Flax's ``with_partitioning`` makes them."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx
from jax.sharding import PartitionSpec

import lstm_jax as lj
from lstm_jax import linen, nnx
from tests.common import assert_close, normal, random_like
from tests.test_flax_parameters import Plain

KEY = jax.random.key(0)
XS = normal(1, (2, 7, 3))
GLOROT = jax.nn.initializers.glorot_uniform()

SHARDED = (None, "model")
# The initializers that are annotated, and the options of the model.
ANNOTATED = {
    "kernel": (("kernel_init",), {}),
    "all": (("kernel_init", "recurrent_init"), dict(proj_size=2, num_layers=2)),
    "bidirectional": (("kernel_init",), dict(bidirectional=True)),
    "heads": (("recurrent_init",), dict(hidden_size=8, num_heads=2)),
    "FGR": (("recurrent_init",), dict(variant="FGR")),
    "sLSTM": (("kernel_init",), dict(variant="sLSTM")),
    "noise": (("kernel_init",), dict(recurrent_dropout=0.5)),
    "half": (("kernel_init",), dict(param_dtype=jnp.bfloat16)),
}
# What each makes.
MADE = {
    "kernel_init": ("kernel", "projection_kernel"),
    "recurrent_init": ("recurrent_kernel", "gate_kernel"),
}


def annotated(with_partitioning, names, options):
    inits = {name: with_partitioning(GLOROT, SHARDED) for name in names}
    plain = dict.fromkeys(names, GLOROT)
    options = {"hidden_size": 5} | options
    return options | inits, options | plain


def assert_specs(tree, names, options):
    found = 0
    leaves, _ = jax.tree.flatten_with_path(
        tree, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )
    for path, spec in leaves:
        field = jax.tree_util.keystr(path[-1:], simple=True)
        expected = PartitionSpec()
        if any(field in MADE[name] for name in names):
            heads = field == "recurrent_kernel" and options.get("num_heads", 1) > 1
            expected = PartitionSpec(*(None,) * heads, *SHARDED)
            found += 1
        assert spec == expected, field
    assert found >= len(names)


@pytest.mark.parametrize("case", ANNOTATED)
def test_linen_takes_partitioned_initializers(case):
    names, options = ANNOTATED[case]
    boxed, plain = annotated(flax_linen.with_partitioning, names, options)
    module, like = linen.LSTM(3, **boxed), linen.LSTM(3, **plain)
    variables, expected = module.init(KEY, XS), like.init(KEY, XS)
    assert_close(flax_linen.unbox(variables), expected)
    assert_close(module.apply(variables, XS), like.apply(expected, XS))
    params = linen.params_of(variables)
    assert_close(params, linen.params_of(expected))
    assert_close(module.apply(linen.variables_of(params), XS), like.apply(expected, XS))
    assert_specs(flax_linen.get_partition_spec(variables), names, options)
    abstract = jax.eval_shape(module.init, KEY, XS)
    assert_specs(flax_linen.get_partition_spec(abstract), names, options)


@pytest.mark.parametrize("case", ANNOTATED)
def test_nnx_takes_partitioned_initializers(case):
    names, options = ANNOTATED[case]
    boxed, plain = annotated(flax_nnx.with_partitioning, names, options)
    with flax_nnx.use_eager_sharding(False):  # There is no mesh.
        module = nnx.LSTM(3, **boxed, rngs=flax_nnx.Rngs(params=0, dropout=1))
    assert module.model == lj.LSTM(3, **boxed)
    like = lj.LSTM(3, **plain)
    params = like.init(flax_nnx.Rngs(params=0).params())
    assert_close(module.params(), params)
    assert_close(module(XS, deterministic=True), like.apply(params, XS))
    state = flax_nnx.state(module, flax_nnx.Param)
    specs = flax_nnx.to_pure_dict(flax_nnx.get_partition_spec(state))
    assert_specs(specs, names, options)


@pytest.mark.parametrize(
    "make", [flax_linen.with_partitioning, flax_linen.with_logical_partitioning]
)
def test_linen_boxes_are_kept_as_they_are(make):
    zeros = jax.nn.initializers.zeros
    module = linen.LSTM(
        3, 5, kernel_init=make(GLOROT, SHARDED), bias_init=make(zeros, ("x",))
    )
    layer = module.init(KEY, XS)["params"]["layer_0"]["forward"]
    assert type(layer["kernel"]) is type(make(GLOROT, SHARDED)(KEY, (3, 4)))
    assert layer["kernel"].names == SHARDED and layer["bias"].names == ("x",)
    assert_close(layer["bias"].value, jnp.repeat(jnp.float32([0, 1, 0, 0]), 5))
    stacked = flax_linen.vmap(
        linen.LSTM,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        metadata_params={flax_linen.PARTITION_NAME: "ensemble"},
    )(3, 5, kernel_init=make(GLOROT, SHARDED))
    layer = stacked.init(KEY, XS)["params"]["layer_0"]["forward"]
    assert layer["kernel"].names == ("ensemble", *SHARDED)


def test_nnx_metadata_is_kept_as_it_is():
    rules = (("model", "x"),)
    inits = dict(
        kernel_init=flax_nnx.with_partitioning(GLOROT, SHARDED, sharding_rules=rules),
        bias_init=flax_nnx.with_metadata(jax.nn.initializers.zeros, decay=False),
    )
    with flax_nnx.use_eager_sharding(False):
        module = nnx.LSTM(3, 5, **inits, rngs=flax_nnx.Rngs(0))
    forward = module.layers[0].forward
    assert forward.kernel.get_metadata("sharding_rules") == rules
    assert forward.bias.get_metadata("decay") is False
    assert "decay" not in forward.kernel.get_metadata()
    specs = flax_nnx.get_partition_spec(flax_nnx.state(module, flax_nnx.Param))
    spec = specs["layers"][0]["forward"]["kernel"].get_value()
    assert spec == PartitionSpec(None, "x")


@pytest.mark.parametrize("outer", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_metadata_of_a_cell_of_a_user_s_own(outer):
    """Two initializers of equal shapes, with other names than ours, maybe in a jit."""

    @dataclasses.dataclass(frozen=True)
    class Nested(Plain):
        def init(self, key):
            return outer(super().init)(key)

    first = flax_linen.with_partitioning(GLOROT, ("a", "b"))
    second = flax_linen.with_partitioning(GLOROT, ("c", "d"))
    model = lj.Stack((Nested(3, 3, "dict", first, second),))
    layer = linen.Stack(model).init(KEY, XS)["params"]["layer_0"]["forward"]
    assert layer["in"]["kernel"].names == ("a", "b")
    assert layer["params"]["0"].names == ("c", "d")


def test_metadata_that_is_no_parameter_s_is_refused():
    one = flax_linen.with_partitioning(GLOROT, ("a", "b"))
    other = flax_linen.with_partitioning(GLOROT, ("c", "d"))
    module = linen.Stack(lj.Stack((Plain(3, 4, "array", one, other),)))
    with pytest.raises(
        ValueError, match="second_init: expected the metadata of the wh"
    ):
        module.init(KEY, XS)
    alike = linen.Stack(lj.Stack((Plain(3, 4, "array", one, one),)))
    layer = alike.init(KEY, XS)["params"]["layer_0"]
    assert layer["forward"]["array"].names == ("a", "b")

    @dataclasses.dataclass(frozen=True)
    class Flat(Plain):
        def init(self, key):
            return {"in": {"kernel": super().init(key)["in"]["kernel"].ravel()}}

    with pytest.raises(ValueError, match="first_init: .* of the 2 axes .* got 1"):
        linen.Stack(lj.Stack((Flat(3, 4, "dict", one),))).init(KEY, XS)
    with pytest.raises(ValueError, match="second_init: .* found none that comes of"):
        linen.Stack(lj.Stack((Flat(3, 4, "dict", GLOROT, one),))).init(KEY, XS)


def test_metadata_of_the_other_kind_is_refused():
    init = flax_linen.with_partitioning(GLOROT, SHARDED)
    with pytest.raises(
        TypeError, match="kernel_init: .*flax.nnx.* returns Partitioned"
    ):
        nnx.LSTM(3, 5, kernel_init=init, rngs=flax_nnx.Rngs(0))
    init = flax_nnx.with_partitioning(GLOROT, SHARDED)
    with pytest.raises(TypeError, match="kernel_init: .*flax.linen.* VariableMetadata"):
        linen.LSTM(3, 5, kernel_init=init).init(KEY, XS)


def mesh():
    return jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))


def test_nnx_parameters_are_made_and_loaded_where_they_belong():
    init = flax_nnx.with_partitioning(GLOROT, SHARDED)
    with jax.set_mesh(mesh()):
        module = nnx.LSTM(3, 4, kernel_init=init, rngs=flax_nnx.Rngs(0))
        kernel = module.layers[0].forward.kernel
        assert kernel.get_value().sharding.spec == PartitionSpec(*SHARDED)
        params = random_like(5, module.params())
        module.load(params)
        assert kernel.get_value().sharding.spec == PartitionSpec(*SHARDED)
        assert_close(module.params(), params)
        assert_close(module(XS), lj.LSTM(3, 4).apply(params, XS))


def test_linen_parameters_are_made_where_they_belong():
    module = linen.LSTM(3, 4, kernel_init=flax_linen.with_partitioning(GLOROT, SHARDED))
    with jax.set_mesh(mesh()):
        abstract = jax.eval_shape(module.init, KEY, XS)
        shardings = flax_linen.get_sharding(abstract, mesh())
        variables = jax.jit(module.init, out_shardings=shardings)(KEY, XS)
        kernel = variables["params"]["layer_0"]["forward"]["kernel"].value
        assert kernel.sharding.spec == PartitionSpec(*SHARDED)
        ys = module.apply(variables, XS)[1]
    assert_close(ys, lj.LSTM(3, 4).apply(linen.params_of(variables), XS)[1])
