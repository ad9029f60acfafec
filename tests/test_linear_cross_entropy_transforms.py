"""Softmax cross-entropy without all the logits under transforms and on devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_jax.training import linear_cross_entropy
from tests import programs
from tests.common import assert_close, normal, quick_jit
from tests.readouts import MOVING, H, V, case, mean, ours, place, valid_of
from tests.sharded import AXIS_TYPES

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
