"""Arrays that enter become JAX's own; arrays that leave are NumPy's own."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.checks.border import give, take

SHAPE = (256, 1024)  # 1 MB of float32


def aligned(shape, dtype, offset=0):
    """A buffer whose address is ``offset`` bytes past a multiple of 64."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(count + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    return raw[start : start + count].view(dtype).reshape(shape)


@jax.jit
def busy(x):
    """Some milliseconds of work, after which ``x`` comes back."""
    y = jax.lax.fori_loop(0, 8, lambda _, m: m @ m * 1e-3, jnp.ones((256, 256)))
    return x + 0 * y[0, 0].astype(x.dtype)


@jax.jit
def late(x, y):
    return x + 0 * y[0, 0].astype(x.dtype)


@pytest.mark.parametrize("offset", [0, 4], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("shape", [(3,), SHAPE], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "int32", "bfloat16"])
def test_a_buffer_may_be_overwritten_right_after_it_was_taken(dtype, shape, offset):
    buffer, wrong = aligned(shape, jnp.dtype(dtype), offset), 0
    waiting = jnp.ones((1, 1))
    for n in range(100):
        buffer[...] = n
        waiting = busy(waiting)
        out = late(take("xs", buffer), waiting)
        buffer[...] = -1
        wrong += bool((np.asarray(out) != n).any())
    assert wrong == 0


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.arange(12, dtype=">i4").reshape(3, 4)[:, ::-2],
        np.arange(5, dtype=">f8"),
        np.ones((0, 3), np.float32),
        np.array([True, False]),
        np.float64(2.5),
        np.arange(4).astype(jnp.bfloat16),
        np.arange(4, dtype=np.float16)[::2],
    ],
    ids=lambda value: f"{value.dtype.str}{value.shape}",
)
def test_numpy_arrays_are_taken_whatever_their_layout(value, x64):
    with jax.enable_x64(True) if x64 else contextlib.nullcontext():
        taken = take("xs", value)
        kind = value.dtype.newbyteorder("=")
        if not x64:
            kind = {"float64": np.dtype("float32")}.get(kind.name, kind)
        assert isinstance(taken, jax.Array) and taken.dtype == kind
        np.testing.assert_array_equal(np.asarray(taken), value)


def test_jax_arrays_and_tracers_pass_as_they_are():
    for value in (jnp.ones(3), jax.random.key(0), jax.random.split(jax.random.key(0))):
        assert take("xs", value) is value
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    where = jax.NamedSharding(mesh, jax.P("data"))
    sharded = jax.device_put(jnp.ones(4), where)
    assert take("xs", sharded).sharding == where

    def traced(x):
        assert take("xs", x) is x
        return x

    jax.jit(jax.vmap(jax.grad(traced)))(jnp.ones(3))


def test_numbers_and_lists_are_taken_where_allowed():
    for value, expected in (
        ([3, 1], [3, 1]),
        ((2,), [2]),
        (4, 4),
        ([], []),
        ([np.int64(2)], [2]),
    ):
        taken = take("lengths", value, allow_lists=True)
        assert taken.dtype == jnp.int32 and taken.tolist() == expected


class Unreadable:
    shape, dtype = (2,), np.dtype("float32")

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("on another device")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "xs: expected an array, got NoneType."),
        ("text", "xs: expected an array, got str."),
        ({"xs": 1}, "xs: expected an array, got dict."),
        (np.ndarray, "xs: expected an array, got type."),
        (
            jax.ShapeDtypeStruct((2,), jnp.float32),
            "xs: expected an array, got ShapeDtypeStruct.",
        ),
        ([1.0, 2.0], "xs: expected an array, got list. Convert it with jnp.asarray."),
        (1.0, "xs: expected an array, got float. Convert it with jnp.asarray."),
        ([[1.0], [2.0, 3.0]], "xs: expected an array, got list. Its parts differ in"),
        (["a"], "xs: expected an array, got list. Its parts differ in shape, are"),
        (np.array(["a"]), "xs: expected an array of numbers, got one of dtype <U1."),
        (np.array([None]), "xs: expected an array of numbers, got one of dtype object"),
        (np.zeros(2, "V2"), "xs: expected an array of numbers, got one of dtype |V2."),
        (np.zeros(2, "M8[s]"), "xs: expected an array of numbers, got one of dtype"),
        (
            np.ma.masked_array([1.0, 2.0], [False, True]),
            "xs: expected an array, got MaskedArray, whose mask would be lost.",
        ),
        (Unreadable(), "got Unreadable, which NumPy can't read: on another device"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_array_is_refused(value, words):
    with pytest.raises(TypeError, match=re.escape(words)):
        take("xs", value)


@pytest.mark.parametrize(
    "value", ["34", None, [[1], [2, 3]], {"a": 1}, [None], [10**400]], ids=str
)
def test_what_is_no_list_of_numbers_is_refused(value):
    with pytest.raises(TypeError, match="lengths: expected an array, got"):
        take("lengths", value, allow_lists=True)


def test_integers_do_not_wrap():
    value = np.array([3, 2**32 + 3])
    with pytest.raises(ValueError, match="fit in int32, got 3 to 4294967299"):
        take("lengths", value)
    with jax.enable_x64(True):
        assert take("lengths", value).tolist() == value.tolist()


@pytest.mark.parametrize(
    "array",
    [
        jnp.arange(6.0).reshape(2, 3),
        jnp.arange(4, dtype=jnp.bfloat16),
        np.arange(6.0).reshape(2, 3).T,
        np.arange(8, dtype=">f4")[::2],
        np.broadcast_to(np.float32(2), (3, 2)),
        np.float32(3),
        jnp.zeros((0, 4)),
    ],
    ids=lambda value: f"{type(value).__name__}{value.dtype}{value.shape}",
)
def test_what_leaves_is_its_own(array):
    given = give(array)
    assert type(given) is np.ndarray
    assert given.flags.c_contiguous and given.flags.writeable and given.flags.owndata
    assert given.dtype == np.dtype(array.dtype).newbyteorder("=")
    before = np.array(array)
    np.testing.assert_array_equal(given, before)
    given[...] = 7
    np.testing.assert_array_equal(np.asarray(array), before)
