"""What a program needs does not grow with the length of a sequence, or not as fast."""

import time

import jax
import jax.numpy as jnp
import pytest

import lstm_jax as lj

IMPLEMENTATIONS = [
    name for name, why in lj.implementations().items() if why == "available"
]
MIB = 2**20


def gradient(model, implementation, every=None):
    def loss(params, xs):
        options = dict(checkpoint_every=every, implementation=implementation)
        return jnp.sum(model.apply(params, xs, **options)[0][-1].forward.h)

    return jax.jit(jax.grad(loss))


def compiled(model, implementation, shape, every=None):
    params = jax.eval_shape(model.init, jax.random.key(0))
    xs = jax.ShapeDtypeStruct(shape, jnp.float32)
    return gradient(model, implementation, every).lower(params, xs).compile()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_gradient_through_a_million_steps_fits_in_a_gibibyte(implementation):
    program = compiled(lj.LSTM(64, 64), implementation, (1, 1_000_000, 64), "sqrt")
    temporaries = program.memory_analysis().temp_size_in_bytes
    assert 0 < temporaries < 1024 * MIB, f"{temporaries / MIB:.0f} MiB"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_programs_do_not_grow_with_time_and_batch(implementation):
    model = lj.LSTM(3, 8)
    short = compiled(model, implementation, (2, 64, 3))
    for shape in ((2, 8192, 3), (512, 64, 3)):
        longer = compiled(model, implementation, shape)
        small, large = (program.as_text().count("\n") for program in (short, longer))
        assert large < 1.2 * small, shape


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_programs_grow_no_faster_than_layers(implementation):
    lines = {}
    for layers in (2, 4, 8):
        program = compiled(lj.LSTM(8, 8, layers), implementation, (2, 64, 8))
        lines[layers] = program.as_text().count("\n")
    assert lines[8] - lines[4] < 1.1 * 2 * (lines[4] - lines[2])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_many_layers_compile_in_little_more_time_than_one(implementation):
    """Sixteen took 1.0 to 1.6 times as long with the kernels, 1.5 to 2.7 without."""

    def seconds(layers):
        jax.clear_caches()
        start = time.perf_counter()
        compiled(lj.LSTM(8, 8, layers), implementation, (2, 64, 8))
        return time.perf_counter() - start

    least = lambda layers: min(seconds(layers) for _ in range(3))
    assert least(16) < 4 * least(1)
