"""The cross-entropy in chunks, against the formula that holds all the logits."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_jax.training import Weighted, cross_entropy, linear_cross_entropy
from tests import programs
from tests.common import assert_close, normal, quick_jit
from tests.sharded import AXIS_TYPES

H, V = 5, 11
SHAPE = (3, 7)
LENGTHS = np.array([7, 0, 4], np.int32)
CHUNKS = (None, 1, 4, 7, 20, 21, 100)
MOVING = (0, 1, 2, 3)


def case(shape=SHAPE, classes=V, dtype="float32", seed=0):
    """ys, kernel, bias, weights and targets."""
    targets = np.random.default_rng(seed).integers(0, classes, shape)
    return (
        normal([seed, 1], (*shape, H), dtype),
        normal([seed, 2], (H, classes), dtype),
        normal([seed, 3], (classes,), dtype),
        jnp.abs(normal([seed, 4], shape, dtype)),
        jnp.asarray(targets, jnp.int32),
    )


def valid_of(shape, names, seed=0):
    """Which tokens count, and how that is said."""
    rng = np.random.default_rng([seed, 9])
    valid, options = np.ones(shape, bool), {}
    if "mask" in names:
        options["mask"] = rng.random(shape) < 0.6
        valid &= options["mask"]
    if "lengths" in names:
        options["lengths"] = rng.integers(0, shape[-1] + 1, shape[:-1])
        valid &= np.arange(shape[-1]) < options["lengths"][..., None]
    return valid, options


def plain(ys, kernel, bias, weights, targets, valid=None):
    """The same without chunks, total and weight, in JAX's own operations."""
    logits = jnp.einsum("...h,hv->...v", ys, kernel)
    logits += bias.reshape((1,) * (logits.ndim - 1) + (-1,))
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
    weights = weights if valid is None else jnp.where(valid, weights, 0)
    return jnp.sum(weights * losses[..., 0]), jnp.sum(weights)


def mean(*args, **options):
    total, weight = plain(*args, **options)
    return total / jnp.maximum(weight, 1e-9)


def ours(ys, kernel, bias, weights, targets, **options):
    return linear_cross_entropy(ys, kernel, bias, targets, weights=weights, **options)


def by_hand(ys, kernel, bias, weights, targets, valid):
    """The mean and its gradients, by a loop in float64 over the tokens that count."""
    ys, kernel, bias, weights = (
        np.asarray(a, np.float64) for a in (ys, kernel, bias, weights)
    )
    total, whole = 0.0, weights[valid].sum() or 1.0
    grads = [np.zeros_like(a) for a in (ys, kernel, bias)]
    for place in map(tuple, np.argwhere(valid)):
        logits = ys[place] @ kernel + bias
        p = np.exp(logits - logits.max())
        p /= p.sum()
        total -= weights[place] * np.log(p[targets[place]])
        p[targets[place]] -= 1
        p *= weights[place] / whole
        grads[0][place] = kernel @ p
        grads[1] += np.outer(ys[place], p)
        grads[2] += p
    return total / whole, tuple(grads)


@pytest.mark.parametrize("run", [jax.jit, lambda f: f], ids=["jit", "eager"])
@pytest.mark.parametrize("names", [(), ("mask",), ("lengths",), ("mask", "lengths")])
def test_agrees_with_a_loop_in_numpy(names, run):
    args = case()
    valid, options = valid_of(SHAPE, names)
    for weights in (args[3], jnp.ones(SHAPE)):
        given = (*args[:3], weights, args[4])
        both = jax.value_and_grad(functools.partial(ours, chunk_size=4), (0, 1, 2))
        assert_close(run(both)(*given, **options), by_hand(*given, valid))


@pytest.mark.parametrize("weighing", [True, False], ids=["weights", "ones"])
@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_every_size_of_a_chunk_is_the_same(chunk_size, weighing):
    args = case()
    valid, options = valid_of(SHAPE, ("mask", "lengths"))
    moving = MOVING if weighing else MOVING[:3]
    if not weighing:
        args = (*args[:3], None, args[4])
    run = functools.partial(ours, chunk_size=chunk_size, **options)
    expected = (*args[:3], jnp.ones(SHAPE), args[4])
    assert_close(
        jax.value_and_grad(run, moving)(*args),
        jax.value_and_grad(functools.partial(mean, valid=valid), moving)(
            *(args if weighing else expected)
        ),
    )


@pytest.mark.parametrize("classes", [1, 2, 300])
@pytest.mark.parametrize("shape", [(), (1,), (13,), (1, 1), (2, 3, 4), (5, 1)], ids=str)
def test_every_shape(shape, classes):
    args = case(shape, classes)
    for chunk_size in (None, 3):
        run = functools.partial(ours, chunk_size=chunk_size)
        actual = jax.value_and_grad(run, MOVING)(*args)
        expected = jax.value_and_grad(mean, MOVING)(*args)
        # With one class everything is 0.
        jax.tree.map(
            lambda a, e: np.testing.assert_allclose(a, e, atol=3e-6, rtol=1e-5),
            actual,
            expected,
        )


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)], ids=str)
@pytest.mark.parametrize("run", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_no_token_is_no_loss(shape, run):
    args = case(shape)
    value, grads = run(jax.value_and_grad(ours, MOVING))(*args)
    assert value == 0 and not any(g.any() for g in grads)
    args, none = case(), jnp.zeros(SHAPE, bool)
    value, grads = run(jax.value_and_grad(ours, MOVING))(*args, mask=none)
    assert value == 0 and not any(g.any() for g in grads)


def test_no_bias_is_a_bias_of_zeros():
    ys, kernel, bias, _, targets = case()
    without = lambda ys, kernel: linear_cross_entropy(ys, kernel, None, targets)
    zeros = lambda ys, kernel: cross_entropy(ys @ kernel, targets)
    assert_close(
        jax.value_and_grad(without, (0, 1))(ys, kernel),
        jax.value_and_grad(zeros, (0, 1))(ys, kernel),
    )


DERIVATIVES = {
    "forward": lambda f: jax.jacfwd(f, MOVING),
    "jvp of grad": lambda f: jax.jacfwd(jax.grad(f, MOVING), MOVING),
    "grad of grad": lambda f: jax.jacrev(jax.grad(f, MOVING), MOVING),
    "grad of jvp": lambda f: jax.jacrev(jax.jacfwd(f, MOVING), MOVING),
    "third": lambda f: jax.jacfwd(jax.hessian(f, 2), 2),
}


@pytest.mark.parametrize("derivative", DERIVATIVES.values(), ids=DERIVATIVES)
def test_derivatives_of_every_order_and_mode(derivative):
    args = case((2, 3), 4)
    mask = jnp.array([[True, True, False], [True, False, True]])
    run = lambda *moving: ours(*moving, args[4], mask=mask, chunk_size=2) ** 2
    right = lambda *moving: mean(*moving, args[4], mask) ** 2
    actual, expected = (quick_jit(derivative(f))(*args[:4]) for f in (run, right))
    assert_close(actual, expected)


@pytest.mark.parametrize("which", range(4))
def test_one_argument_alone_is_differentiated(which):
    args = case()
    run = functools.partial(ours, chunk_size=4)
    assert_close(jax.grad(run, which)(*args), jax.grad(mean, which)(*args))
    along = normal(7, args[which].shape)
    of_one = lambda f: jax.jvp(
        lambda one: f(*args[:which], one, *args[which + 1 :]), (args[which],), (along,)
    )
    assert_close(of_one(run), of_one(mean))


AXES = {
    "ys": (0, None, None, None, None),
    "kernel": (None, 0, None, None, None),
    "bias": (None, None, 0, None, None),
    "weights": (None, None, None, 0, None),
    "targets": (None, None, None, None, 0),
    "tokens": (1, None, None, 1, 1),
    "all": (0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_under_vmap(axes):
    several = [case((3, 4), seed=seed) for seed in range(3)]
    args = [
        arrays[0] if axis is None else jnp.stack(arrays, axis)
        for axis, *arrays in zip(axes, *several, strict=True)
    ]
    scales = jnp.arange(1.0, 4.0)

    def loss(f):
        def total(*moving):
            values = jax.vmap(f, axes)(*moving, args[4])
            return jnp.sum(values * scales) + 2 * values[0]

        return jax.value_and_grad(total, MOVING)(*args[:4])

    run = functools.partial(ours, chunk_size=5)
    assert_close(loss(run), loss(mean))
    each = lambda f: jax.vmap(jax.grad(f, MOVING), axes)(*args)
    assert_close(each(run), each(mean))


@pytest.mark.parametrize("remat", [lambda f: f, jax.checkpoint], ids=["kept", "remat"])
def test_in_a_scan_that_is_differentiated(remat):
    args = case()

    def loss(f):
        def whole(ys, kernel):
            one = remat(lambda total, scale: (total + f(scale * ys, kernel), None))
            return jax.lax.scan(one, 1.0, jnp.arange(1.0, 4.0))[0]

        return jax.jit(jax.value_and_grad(whole, (0, 1)))(*args[:2])

    run = lambda ys, kernel: ours(ys, kernel, *args[2:], chunk_size=6)
    assert_close(loss(run), loss(lambda ys, kernel: mean(ys, kernel, *args[2:])))


def test_parts_add_up_to_the_whole():
    ys, kernel, bias, weights, targets = case()
    valid, options = valid_of(SHAPE, ("mask",))

    def parts(*moving):
        ys, kernel, bias, weights = moving
        total = [
            linear_cross_entropy(
                ys[rows],
                kernel,
                bias,
                targets[rows],
                options["mask"][rows],
                weights=weights[rows],
                weighted=True,
            )
            for rows in (slice(0, 1), slice(1, 3))
        ]
        return jax.tree.map(lambda a, b: a + b, *total).mean()

    whole = functools.partial(mean, targets=targets, valid=valid)
    args = ys, kernel, bias, weights
    assert_close(
        jax.value_and_grad(parts, MOVING)(*args),
        jax.value_and_grad(whole, MOVING)(*args),
    )


def test_a_weight_is_a_count_or_a_sum():
    ys, kernel, bias, weights, targets = case()
    mask = valid_of(SHAPE, ("mask",))[0]
    given = dict(mask=mask, weighted=True)
    counted = linear_cross_entropy(ys, kernel, bias, targets, **given)
    assert isinstance(counted, Weighted) and counted.weight.dtype == jnp.int32
    assert counted.weight == mask.sum()
    run = lambda weights: ours(ys, kernel, bias, weights, targets, **given)
    right = lambda weights: plain(ys, kernel, bias, weights, targets, mask)
    assert_close(tuple(run(weights)), right(weights))
    assert_close(tuple(jax.jacrev(run)(weights)), jax.jacrev(right)(weights))


@pytest.mark.parametrize("jitted", [True, False])
def test_padding_may_hold_anything(jitted):
    ys, kernel, bias, weights, targets = case()
    valid, options = valid_of(SHAPE, ("mask", "lengths"))
    keep = jnp.asarray(valid)
    bad = (
        jnp.where(keep[..., None], ys, jnp.nan),
        kernel,
        bias.at[0].set(-jnp.inf),
        jnp.where(keep, weights, jnp.nan),
        jnp.where(keep, jnp.maximum(targets, 1), -100),
    )
    clean = (*[ys, kernel, bad[2], weights], jnp.where(keep, bad[4], 1))
    both = jax.value_and_grad(functools.partial(ours, chunk_size=4), MOVING)
    run = jax.jit(both) if jitted else both
    expected = jax.value_and_grad(functools.partial(mean, valid=valid), (0, 1, 3))
    value, grads = run(*bad, **options)
    right, (d_ys, d_kernel, d_weights) = expected(*clean)
    assert_close(value, right)
    assert_close((grads[0], grads[1], grads[3]), (d_ys, d_kernel, d_weights))
    assert not grads[0][~valid].any() and np.isfinite(grads[2]).all()


@pytest.mark.parametrize("target", [-100, -1, V, V + 3])
def test_targets_that_are_no_class(target):
    ys, kernel, bias, weights, targets = case()
    targets = targets.at[1, 2].set(target)
    words = f"targets: expected classes from 0 to V - 1 = {V - 1}, with V the last axis"
    with pytest.raises(ValueError, match=f"{words} of kernel, got {target}; 1 of 21"):
        linear_cross_entropy(ys, kernel, bias, targets)
    grad = jax.jit(jax.value_and_grad(functools.partial(ours, chunk_size=4), MOVING))
    value, grads = grad(ys, kernel, bias, weights, targets)
    assert np.isnan(value)
    wrong = np.isnan(grads[0])
    assert wrong[1, 2].all() and wrong.sum() == H
    # Its kernel's gradient, too, is that of a class which is none.
    assert np.isnan(grads[1]).all() and np.isnan(grads[3][1, 2])
    mask = targets == jnp.clip(targets, 0, V - 1)
    value, grads = grad(ys, kernel, bias, weights, targets, mask=mask)
    assert all(np.isfinite(one).all() for one in (value, *grads))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes(dtype):
    with jax.enable_x64(dtype == "float64"):
        args = case((6, 9), 33, dtype)
        both = jax.value_and_grad(functools.partial(ours, chunk_size=10), MOVING)
        value, grads = quick_jit(both)(*args)
        wide = "float64" if dtype == "float64" else "float32"
        assert value.dtype == wide
        assert all(g.dtype == a.dtype for g, a in zip(grads, args, strict=False))
        exact = [a.astype(wide) for a in args[:4]]
        expected = jax.value_and_grad(mean, MOVING)(*exact, args[4])
        assert_close(value, expected[0], wide)
        assert_close(grads, expected[1], dtype)


def test_small_gradients_survive_float16():
    """The cotangent is a scale of losses: what it lifts must not be 0 before."""
    ys, kernel, bias, weights, targets = case(dtype="float16")
    scale, far = 2.0**-14, jnp.asarray(np.float16(2.0**-12))
    loss = lambda ys: ours(ys, kernel * far, bias, weights, targets)
    right = lambda ys: mean(
        *(a.astype(jnp.float32) for a in (ys, kernel * far, bias, weights)), targets
    )
    expected = jax.grad(right)(ys)
    np.testing.assert_allclose(
        jax.grad(lambda ys: loss(ys) / scale)(ys) * np.float16(scale),
        expected,
        atol=2e-3 * np.abs(expected).max(),
    )


@pytest.mark.parametrize(
    "transform", [lambda f: f, jax.jit, jax.vmap], ids=["plain", "jitted", "mapped"]
)
def test_debug_nans_finds_none(transform):
    ys, kernel, bias, _, targets = case()
    loss = lambda ys, targets: linear_cross_entropy(
        ys, kernel, bias, targets, chunk_size=4
    )
    with jax.debug_nans(True):
        assert np.isfinite(transform(jax.grad(loss))(ys, targets)).all()


def test_without_jit():
    args = case()
    with jax.disable_jit():
        actual = jax.value_and_grad(functools.partial(ours, chunk_size=4))(*args)
    assert_close(actual, jax.value_and_grad(mean)(*args))


def test_logits_of_all_tokens_are_nowhere():
    """Twice the tokens take some more numbers for each, and not V more."""
    classes = 4000
    _, kernel, bias, *_ = case(classes=classes)

    def held(tokens):
        ys, targets = jnp.ones((4, tokens // 4, H)), jnp.zeros((4, tokens // 4), int)
        both = jax.value_and_grad(linear_cross_entropy, (0, 1, 2))
        program = jax.jit(both).lower(ys, kernel, bias, targets).compile()
        return program.memory_analysis().temp_size_in_bytes

    few, many = held(4000), held(8000)
    # ys's gradient, its copies and targets; logits would be 16 kB a token.
    assert many - few <= 4000 * 4 * 8 * (H + 4)
    assert few < 40 * 2**20


def place(mesh, args, *axes):
    put = lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec))
    rows = (True, False, False, True, True)
    return [
        put(arg, P(*axes) if has else P()) for arg, has in zip(args, rows, strict=True)
    ]


LAYOUTS = {
    "rows": ((8, 9), ("data",), 4),
    "two devices": ((6, 5), ("data",), 2),
    "tokens": ((24,), ("data",), 4),
    "time major": ((7, 8), (None, "data"), 4),
    "one row each": ((4, 6), ("data",), 4),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kind", AXIS_TYPES, ids=lambda kind: kind.name)
def test_each_device_walks_its_own_tokens(kind, layout):
    shape, axes, devices = layout
    args = case(shape)
    mask = jnp.asarray(valid_of(shape, ("mask",))[0])
    both = lambda *args: jax.value_and_grad(
        functools.partial(ours, chunk_size=3), MOVING
    )(*args[:-1], mask=args[-1])
    expected = both(*args, mask)
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(kind,), devices=jax.devices()[:devices]
    )
    placed = place(mesh, args, *axes)
    masked = jax.device_put(mask, NamedSharding(mesh, P(*axes)))
    program = jax.jit(both).lower(*placed, masked).compile()
    actual = program(*placed, masked)
    assert_close(actual, expected)
    found = programs.collectives(program.as_text())
    assert {one.name for one in found} == {"all-reduce"}
    assert not any(one.in_loop for one in found)
    # The kernel's gradient, the bias's, the sum of losses and that of weights.
    assert sum(programs.sizes(found)) <= H * V + V + 4
    grads = actual[1]
    for n, spec in ((0, P(*axes)), (1, P()), (2, P()), (3, P(*axes))):
        right = NamedSharding(mesh, spec)
        assert grads[n].sharding.is_equivalent_to(right, grads[n].ndim)


@pytest.mark.parametrize("kind", AXIS_TYPES, ids=lambda kind: kind.name)
def test_several_axes_over_several_mesh_axes(kind):
    args = case((4, 2, 5))
    both = jax.value_and_grad(functools.partial(ours, chunk_size=3), MOVING)
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(kind, kind))
    placed = place(mesh, args, "data", "fsdp")
    program = jax.jit(both).lower(*placed).compile()
    assert_close(program(*placed), both(*args))
    found = programs.collectives(program.as_text())
    assert {one.name for one in found} == {"all-reduce"}
    assert not any(one.in_loop for one in found)


@pytest.mark.parametrize("kind", AXIS_TYPES, ids=lambda kind: kind.name)
def test_second_derivatives_of_a_sharded_batch(kind):
    args = case((4, 3))
    along = [normal(n, arg.shape) for n, arg in enumerate(args[:4])]

    def product(args, along):
        grad = lambda *moving: jax.grad(ours, MOVING)(*moving, args[4], chunk_size=2)
        return jax.jvp(grad, tuple(args[:4]), tuple(along))

    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])
    placed = place(mesh, args, "data")
    moved = place(mesh, (*along, args[4]), "data")[:4]
    assert_close(jax.jit(product)(placed, moved), product(args, along))


def test_examples_that_are_sharded_stay_where_they_are():
    """Under vmap XLA cuts the walk by itself, along what is mapped over."""
    ys, kernel, bias, weights, targets = args = case((8, 6))
    loss = functools.partial(ours, chunk_size=2)
    each = jax.vmap(jax.value_and_grad(loss, (0, 3)), (0, None, None, 0, 0))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    placed = place(mesh, args, "data")
    program = jax.jit(each).lower(*placed).compile()
    assert not programs.collectives(program.as_text())
    assert_close(program(*placed), each(*args))


def test_a_kernel_that_is_sharded_is_gathered():
    ys, kernel, bias, weights, targets = args = case((8, 3), classes=12)
    both = jax.value_and_grad(functools.partial(ours, chunk_size=2), MOVING)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    placed = place(mesh, args, "data")
    placed[1] = jax.device_put(kernel, NamedSharding(mesh, P(None, "data")))
    assert_close(jax.jit(both)(*placed), both(*args))


def test_a_batch_that_does_not_divide_is_right():
    args = case((8, 5))
    both = jax.value_and_grad(functools.partial(ours, chunk_size=3), MOVING)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    placed = place(mesh, args, "data")
    cut = lambda *args: both(*(a if n in (1, 2) else a[:6] for n, a in enumerate(args)))
    assert_close(jax.jit(cut)(*placed), cut(*args))


@pytest.mark.parametrize("check_vma", [False, True])
def test_under_shard_map(check_vma):
    args = case((8, 5))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    specs = (P("data"), P(), P(), P("data"), P("data"))

    def totals(*args):
        total, weight = ours(*args, weighted=True, chunk_size=3)
        return jax.lax.psum((total, weight), "data")

    by_hand = jax.shard_map(
        totals, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma
    )
    loss = lambda *args: (lambda total, weight: total / weight)(*by_hand(*args))
    both = jax.jit(jax.value_and_grad(loss, MOVING))
    assert_close(both(*args), jax.value_and_grad(mean, MOVING)(*args))


def test_exports():
    args = case()
    both = jax.jit(jax.value_and_grad(functools.partial(ours, chunk_size=4), MOVING))
    exported = jax.export.export(both)(*args)
    again = jax.export.deserialize(exported.serialize())
    assert_close(again.call(*args), both(*args))


REFUSED = {
    "kernel": (
        dict(kernel=jnp.ones((V, H))),
        ValueError,
        "kernel: expected shape [H, V] with H = 5, the last axis of ys, got [11, 5]. "
        "It looks transposed: pass kernel.T.",
    ),
    "bias": (
        dict(bias=jnp.ones(H)),
        ValueError,
        "bias: expected shape [V] = [11], got [5].",
    ),
    "targets": (
        dict(targets=jnp.ones(3, int)),
        ValueError,
        "targets: expected shape [3, 7], the leading axes of ys, got [3].",
    ),
    "weights": (
        dict(weights=jnp.ones(3)),
        ValueError,
        "weights: expected shape of targets = [3, 7], got [3].",
    ),
    "negative": (
        dict(weights=-jnp.ones(SHAPE)),
        ValueError,
        "weights: expected numbers from 0 on, got -1.0.",
    ),
    "integers": (
        dict(weights=jnp.ones(SHAPE, int)),
        TypeError,
        "weights: expected a floating dtype, got int32.",
    ),
    "chunk_size": (
        dict(chunk_size=0),
        ValueError,
        "chunk_size: expected at least 1, got 0.",
    ),
    "weighted": (
        dict(weighted=1),
        TypeError,
        "weighted: expected True or False, got 1 of type int.",
    ),
    "mask": (
        dict(mask=jnp.ones(3, bool)),
        ValueError,
        "mask: expected bool [3, 7], as targets, got bool [3].",
    ),
}


@pytest.mark.parametrize(("changes", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_refuses_what_does_not_fit(changes, error, words):
    ys, kernel, bias, _, targets = case()
    arguments = dict(ys=ys, kernel=kernel, bias=bias, targets=targets) | changes
    with pytest.raises(error, match=re.escape(words)):
        linear_cross_entropy(**arguments)
