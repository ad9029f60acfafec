"""Parity with ``torch.nn.LSTM`` from the same weights: values and every gradient."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import lstm_jax as lj
from tests.common import assert_close, random_like

I, H, T = 3, 5, 9
OPTIONS = {
    "plain": {},
    "two_layers": dict(num_layers=2),
    "three_layers_no_bias": dict(num_layers=3, bias=False),
    "bidirectional": dict(bidirectional=True),
    "bidirectional_layers": dict(bidirectional=True, num_layers=2),
    "projection": dict(proj_size=2),
    "everything": dict(bidirectional=True, num_layers=2, proj_size=2, bias=False),
}
LENGTHS = torch.tensor([4, 9, 1, 7])


def to_jax(tensor):
    return jnp.asarray(tensor.detach().numpy())


class Case:
    """One module with random weights, input, state and cotangents, run by torch."""

    def __init__(self, options, *, batch_shape=(4,), packed=False, dtype="float32"):
        torch.manual_seed(0)
        kind = getattr(torch, dtype)
        self.module = torch.nn.LSTM(I, H, batch_first=True, **options).to(kind)
        directions = 2 if options.get("bidirectional") else 1
        leading = options.get("num_layers", 1) * directions
        output = options.get("proj_size", H)
        make = lambda *shape: torch.randn(*shape, dtype=kind, requires_grad=True)
        self.xs = make(*batch_shape, T, I)
        self.h = make(leading, *batch_shape, output)
        self.c = make(leading, *batch_shape, H)
        self.packed = packed
        self.ys, (self.last_h, self.last_c) = self.run()
        outs = (self.ys, self.last_h, self.last_c)
        self.cotangents = [torch.randn_like(out) for out in outs]
        torch.autograd.backward(outs, self.cotangents)

    def run(self):
        if not self.packed:
            return self.module(self.xs, (self.h, self.c))
        rnn = torch.nn.utils.rnn
        xs = rnn.pack_padded_sequence(
            self.xs, LENGTHS, batch_first=True, enforce_sorted=False
        )
        ys, state = self.module(xs, (self.h, self.c))
        ys, _ = rnn.pad_packed_sequence(ys, batch_first=True, total_length=T)
        return ys, state


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("packed", [False, True], ids=["full", "packed"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_values_and_gradients_agree(options, packed, dtype):
    context = jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()
    with context:
        check(Case(options, packed=packed, dtype=dtype), dtype)


def test_values_and_gradients_agree_without_a_batch():
    check(Case(OPTIONS["bidirectional_layers"], batch_shape=()), "float32")


def check(case, dtype):
    model, params = lj.convert.from_torch(case.module.state_dict())
    state = lj.convert.state_from_torch(model, case.h, case.c)
    lengths = to_jax(LENGTHS.int()) if case.packed else None

    def run(params, xs, state):
        state, ys = model.apply(params, xs, state, lengths=lengths)
        return ys, *lj.convert.state_to_torch(model, state)

    out, pull = jax.vjp(run, params, to_jax(case.xs), state)
    assert_close(out, tuple(map(to_jax, (case.ys, case.last_h, case.last_c))), dtype)

    d_params, d_xs, d_state = pull(tuple(map(to_jax, case.cotangents)))
    d_h, d_c = lj.convert.state_to_torch(model, d_state)
    expected = tuple(to_jax(leaf.grad) for leaf in (case.xs, case.h, case.c))
    assert_close((d_xs, d_h, d_c), expected, dtype)
    for name, value in lj.convert.to_torch(model, d_params).items():
        if not name.startswith("bias_hh"):
            grad = case.module.get_parameter(name).grad
            assert_close(jnp.asarray(value), to_jax(grad), dtype, name)


@pytest.mark.parametrize("batch_first", [False, True])
def test_time_major_is_batch_first_false(batch_first):
    torch.manual_seed(1)
    module = torch.nn.LSTM(I, H, batch_first=batch_first)
    xs = torch.randn(4, T, I)
    model, params = lj.convert.from_torch(module.state_dict())
    with torch.no_grad():
        expected, _ = module(xs)
    _, ys = model.apply(params, to_jax(xs), time_major=not batch_first)
    assert_close(ys, to_jax(expected))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_weights_round_trip_through_torch(options):
    torch.manual_seed(2)
    model, _ = lj.convert.from_torch(torch.nn.LSTM(I, H, **options).state_dict())
    params = random_like(3, model.init(jax.random.key(0)))
    other = torch.nn.LSTM(I, H, **options)
    weights = lj.convert.to_torch(model, params)
    other.load_state_dict({k: torch.tensor(v) for k, v in weights.items()}, strict=True)
    again, back = lj.convert.from_torch(other.state_dict())
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, back, params)
    xs = torch.randn(2, T, I)
    with torch.no_grad():
        expected, _ = other(xs.swapaxes(0, 1))
    _, ys = model.apply(params, to_jax(xs))
    assert_close(ys, to_jax(expected.swapaxes(0, 1)))


def test_module_inside_a_larger_one_is_found_by_its_prefix():
    net = torch.nn.ModuleDict(
        {"rnn": torch.nn.LSTM(I, H), "out": torch.nn.Linear(H, 2)}
    )
    model, _ = lj.convert.from_torch(net.state_dict(), prefix="rnn.")
    assert (model.input_size, model.hidden_size) == (I, H)
    with pytest.raises(ValueError, match=r"weight_ih_l0 is missing.*out, rnn.*prefix"):
        lj.convert.from_torch(net.state_dict())


def test_bfloat16_weights_keep_their_dtype():
    module = torch.nn.LSTM(I, H).to(torch.bfloat16)
    _, params = lj.convert.from_torch(module.state_dict())
    assert params[0].forward.kernel.dtype == jnp.bfloat16
    expected = module.weight_ih_l0.detach().float().numpy().T
    np.testing.assert_array_equal(
        params[0].forward.kernel.astype(jnp.float32), expected
    )


@pytest.mark.parametrize(("kind", "words"), [("GRU", "a GRU"), ("RNN", "a plain RNN")])
def test_other_modules_are_refused(kind, words):
    with pytest.raises(ValueError, match=f"look like the weights of {words}"):
        lj.convert.from_torch(getattr(torch.nn, kind)(I, H).state_dict())
