"""Parity with ``torch.nn.LSTM`` from the same weights: values and every gradient."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import lstm_jax as lj
from tests.common import assert_close, random_like, relative_error

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


@pytest.mark.parametrize("dtype, limit", [("float32", 1e-6), ("float64", 1e-13)])
def test_layers_that_alternate_agree_with_flips_in_between(dtype, limit):
    torch.manual_seed(3)
    each, kind = (True, False, True), getattr(torch, dtype)
    modules = [torch.nn.LSTM(size, H, batch_first=True).to(kind) for size in (I, H, H)]
    xs = torch.randn(4, T, I, dtype=kind)
    full = torch.full((4,), T)
    for lengths in (LENGTHS, full):
        with torch.no_grad():
            ys = xs
            for module, backwards in zip(modules, each, strict=True):
                ys = flip_rows(ys, lengths) if backwards else ys
                ys, _ = module(ys)
                ys = flip_rows(ys, lengths) if backwards else ys
        context = (
            jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()
        )
        with context:
            taken = [lj.convert.from_torch(m.state_dict())[1][0] for m in modules]
            model = lj.LSTM(I, H, 3, reverse=each)
            given = to_jax(lengths.int())
            actual = np.asarray(model.apply(tuple(taken), to_jax(xs), lengths=given)[1])
        for row, length in enumerate(lengths):
            error = relative_error(actual[row, :length], ys[row, :length].numpy())
            assert error < limit
            assert not actual[row, length:].any()
        with pytest.raises(ValueError, match="reverse: expected False, since PyTorch"):
            lj.convert.to_torch(model, model.init(jax.random.key(0)))


def flip_rows(values, lengths):
    """The valid part of each row from its end to its beginning."""
    rows = zip(values, lengths, strict=True)
    return torch.stack([torch.cat([a[:n].flip(0), a[n:]]) for a, n in rows])


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
    with pytest.raises(ValueError, match=r"is missing. It is there with prefix='rnn.'"):
        lj.convert.from_torch(net.state_dict())
    wrapped = torch.nn.DataParallel(net).state_dict()
    for prefix in ("rnn.", "module.rnn."):
        _, params = lj.convert.from_torch(wrapped, prefix=prefix)
        expected = to_jax(net["rnn"].weight_hh_l0).T
        np.testing.assert_array_equal(params[0].forward.recurrent_kernel, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "wrap", [torch.nn.DataParallel, torch.compile], ids=["DataParallel", "compile"]
)
def test_what_wraps_a_module_is_seen_through(wrap):
    module = torch.nn.LSTM(I, H)
    model, params = lj.convert.from_torch(wrap(module).state_dict())
    expected = lj.convert.from_torch(module.state_dict())
    assert model == expected[0]
    jax.tree.map(np.testing.assert_array_equal, params, expected[1])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "cells.1."])
def test_a_cell_takes_the_same_step(prefix, bias):
    torch.manual_seed(3)
    cells = torch.nn.ModuleList(
        [torch.nn.LSTMCell(2, I), torch.nn.LSTMCell(I, H, bias)]
    )
    net = torch.nn.ModuleDict({"cells": cells}) if prefix else cells[1]
    model, params = lj.convert.from_torch(net.state_dict(), prefix=prefix)
    assert (model.input_size, model.hidden_size, model.num_layers) == (I, H, 1)
    x, h, c = torch.randn(4, I), torch.randn(4, H), torch.randn(4, H)
    with torch.no_grad():
        expected = cells[1](x, (h, c))
    state = lj.convert.state_from_torch(model, h[None], c[None])
    state, y = model.step(params, state, to_jax(x))
    assert_close((state[0].forward.h, state[0].forward.c), tuple(map(to_jax, expected)))
    assert_close(y, to_jax(expected[0]))


class WeightDrop(torch.nn.Module):
    """Keeps a recurrent weight beside the module that it puts a dropped copy into."""

    def __init__(self, module, name="weight_hh_l0"):
        super().__init__()
        self.module = module
        raw = module.get_parameter(name).detach().clone()
        self.register_parameter(f"{name}_raw", torch.nn.Parameter(raw))
        with torch.no_grad():
            module.get_parameter(name).mul_(torch.rand(4 * H, 1) < 0.5).mul_(2)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weight_drop_runs_as_the_raw_weight(prefix):
    torch.manual_seed(4)
    plain = torch.nn.LSTM(I, H)
    dropped = torch.nn.LSTM(I, H)
    dropped.load_state_dict(plain.state_dict())
    state_dict = WeightDrop(dropped).state_dict()
    model, params = lj.convert.from_torch(state_dict, prefix=prefix)
    xs = torch.randn(T, 4, I)
    with torch.no_grad():
        expected, _ = plain(xs)
        other, _ = dropped(xs)
    assert not torch.allclose(expected, other, atol=1e-2)
    _, ys = model.apply(params, to_jax(xs), time_major=True)
    assert_close(ys, to_jax(expected))


def test_a_module_is_no_state_dict():
    with pytest.raises(TypeError, match=r"got LSTM\. Pass module\.state_dict\(\)"):
        lj.convert.from_torch(torch.nn.LSTM(I, H))


def test_exported_weights_are_taken_without_a_copy_or_a_warning():
    model = lj.LSTM(I, H, bidirectional=True)
    params = random_like(5, model.init(jax.random.key(0)))
    weights = lj.convert.to_torch(model, params)
    module = torch.nn.LSTM(I, H, bidirectional=True)
    module.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
    back = lj.convert.from_torch(module.state_dict())[1]
    jax.tree.map(np.testing.assert_array_equal, back, params)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    weights = lj.convert.to_torch(model, half)
    module.bfloat16().load_state_dict(
        {
            k: torch.from_numpy(v.astype("float32")).bfloat16()
            for k, v in weights.items()
        }
    )
    back = lj.convert.from_torch(module.state_dict())[1]
    jax.tree.map(np.testing.assert_array_equal, back, half)


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
    for module in (kind, f"{kind}Cell"):
        with pytest.raises(ValueError, match=f"look like the weights of {words}"):
            lj.convert.from_torch(getattr(torch.nn, module)(I, H).state_dict())
