"""Checkpoints of modules that something was done to: wrapped, normalised, pruned."""

import copy
import re

import jax
import numpy as np
import pytest
import torch
from torch.nn.utils import prune

import lstm_jax as lj
from tests.common import assert_close
from tests.peers.test_torch import to_jax

I, H, T, B = 3, 5, 4, 2
NAMES = ("weight_ih_l0", "weight_hh_l0", "weight_hh_l1_reverse", "bias_hh_l1")
norm = torch.nn.utils.parametrizations.weight_norm
old_norm = torch.nn.utils.weight_norm


def ones(shape):
    return np.ones(shape, np.float32)


def lstm(seed=0, **options):
    torch.manual_seed(seed)
    module = torch.nn.LSTM(I, H, 2, bidirectional=True, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def check(module, state_dict=None, **options):
    """Runs a module, and what its state dict is read as, from the same state."""
    state_dict = module.state_dict() if state_dict is None else state_dict
    model, params = lj.convert.from_torch(state_dict, **options)
    xs = torch.randn(T, B, I)
    h, c = torch.randn(4, B, module.proj_size or H), torch.randn(4, B, H)
    with torch.no_grad():
        ys, (last_h, last_c) = module(xs, (h, c))
    state = lj.convert.state_from_torch(model, h, c)
    state, found = model.apply(params, to_jax(xs), state, time_major=True)
    found = found, *lj.convert.state_to_torch(model, state)
    assert_close(
        jax.tree.map(np.asarray, found),
        tuple(np.asarray(each) for each in (ys, last_h, last_c)),
    )
    return params


# Norms of rows, of columns, and of the whole.
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("normalise", [norm, old_norm], ids=["new", "old"])
def test_weight_norm_is_multiplied_out(normalise, dim):
    module = lstm(proj_size=2)
    names = ("weight_ih_l0", "weight_hh_l1_reverse", "weight_hr_l1")
    for name in names:
        normalise(module, name, dim=dim)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(("_g", "original0")):  # no longer the norms of v
                parameter.mul_(torch.rand(parameter.shape) + 0.5)
    check(module)
    check(
        module,
        {f"a.module.{k}": v for k, v in module.state_dict().items()},
        prefix="a.",
    )


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("normalise", [norm, old_norm], ids=["new", "old"])
def test_a_normalised_bias_and_a_normalised_cell(normalise):
    module = normalise(lstm(), "bias_ih_l1")
    check(module)
    cell = torch.nn.LSTMCell(I, H)
    weight = cell.weight_hh.detach().clone()
    normalise(cell, "weight_hh")
    _, params = lj.convert.from_torch(cell.state_dict())
    assert_close(params[0].forward.recurrent_kernel, to_jax(weight).T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_normalised_weight_keeps_its_dtype(dtype):
    module = norm(lstm(), "weight_hh_l0").to(dtype)
    _, params = lj.convert.from_torch(module.state_dict())
    kernel = params[0].forward.recurrent_kernel
    assert kernel.dtype == str(dtype).removeprefix("torch.")
    expected = module.weight_hh_l0.detach().float().numpy().T
    np.testing.assert_allclose(np.float32(kernel), expected, rtol=2**-7, atol=1e-6)


def test_pruned_weights_are_the_masked_ones():
    module = lstm()
    for name in NAMES:
        prune.random_unstructured(module, name, amount=0.5)
    assert "weight_hh_l0_mask" in module.state_dict()
    params = check(module)
    plain = copy.deepcopy(module)
    for name in NAMES:
        prune.remove(plain, name)
    jax.tree.map(
        np.testing.assert_array_equal,
        params,
        lj.convert.from_torch(plain.state_dict())[1],
    )


@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [
        ("module.{}", ""),
        ("_orig_mod.module.{}", ""),
        ("net.module.rnn._orig_mod.{}", "net.rnn."),
        ("_orig_mod.net.rnn.{}", "net.rnn."),
        ("module.net._orig_mod.rnn.{}", "net.rnn."),
        ("_fsdp_wrapped_module.rnn._checkpoint_wrapped_module.{}", "rnn."),
        ("module.net._orig_mod.rnn.{}", "module.net.rnn."),
        ("module.rnn.{}", "module.rnn."),
    ],
)
def test_wrappers_are_seen_through_anywhere(pattern, prefix):
    module = lstm()
    weights = {pattern.format(k): v for k, v in module.state_dict().items()}
    others = {"head.weight": torch.ones(2)} if prefix else {}
    check(module, weights | others, prefix=prefix)


def test_a_module_without_values_is_refused():
    weights = torch.nn.LSTM(3, 5, device="meta").state_dict()
    with pytest.raises(TypeError, match="weight_ih_l0: expected a tensor with values"):
        lj.convert.from_torch(weights)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_normalised_wrapped_module():
    module = norm(lstm(), "weight_ih_l1")
    net = torch.nn.DataParallel(torch.nn.ModuleDict({"rnn": torch.compile(module)}))
    assert "module.rnn._orig_mod.parametrizations.weight_ih_l1.original1" in (
        net.state_dict()
    )
    check(module, net.state_dict(), prefix="rnn.")


def test_other_parametrizations_are_refused_by_name():
    module = torch.nn.utils.parametrizations.orthogonal(lstm(), "weight_hh_l0")
    with pytest.raises(ValueError, match=r"are parametrized: .*remove_parametrization"):
        lj.convert.from_torch(module.state_dict())

    module = torch.nn.utils.spectral_norm(lstm(), "weight_hh_l0")
    with pytest.raises(
        ValueError, match=r"_u are spectrally normalised: call torch.nn"
    ):
        lj.convert.from_torch(module.state_dict())

    class Product(torch.nn.Module):
        def forward(self, left, right):
            return left @ right

        def right_inverse(self, weight):
            return weight, torch.eye(H)

    module = lstm()
    torch.nn.utils.parametrize.register_parametrization(
        module, "weight_hh_l0", Product()
    )
    with pytest.raises(ValueError, match=r"original0: expected shape \[5, 1\] or \[1"):
        lj.convert.from_torch(module.state_dict())


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:UserWarning")
def test_a_dynamically_quantized_lstm_is_refused_with_the_reason():
    net = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(I, H)})
    quantized = torch.ao.quantization.quantize_dynamic(net, {torch.nn.LSTM})
    found = quantized.state_dict()
    for prefix in ("", "rnn."):
        with pytest.raises(ValueError, match=r"are quantized: take the LSTM as it was"):
            lj.convert.from_torch(found, prefix=prefix)
    # Only tensors are kept by most ways to a file.
    kept = {name: value for name, value in found.items() if torch.is_tensor(value)}
    with pytest.raises(ValueError, match=r"dynamically quantized LSTM was saved"):
        lj.convert.from_torch(kept, prefix="rnn.")


def weights_but(*names, **changes):
    """The weights of a plain LSTM with one matrix in another form."""
    found = {
        name: value.detach().numpy()
        for name, value in torch.nn.LSTM(I, H).state_dict().items()
        if name not in names
    }
    return found | changes


from_torch = lj.convert.from_torch
ERRORS = {
    "wrapped in two ways": (
        lambda: from_torch(
            {
                f"{outside}.rnn.{k}": v
                for outside in ("module", "_orig_mod")
                for k, v in weights_but().items()
            },
            prefix="rnn.",
        ),
        "module.rnn.weight_ih_l0 and _orig_mod.rnn.weight_ih_l0 are both weight_ih_l0 "
        "after the prefix 'rnn.'. Pass a longer one.",
    ),
    "half a weight norm": (
        lambda: from_torch(weights_but("weight_hh_l0") | {"weight_hh_l0_v": ones(3)}),
        "state_dict: the array of weight_hh_l0 whose name ends in _g is missing. It "
        "and weight_hh_l0_v are one weight.",
    ),
    "half a new weight norm": (
        lambda: from_torch(
            weights_but("weight_hh_l0")
            | {"parametrizations.weight_hh_l0.original0": ones(3)}
        ),
        "whose name ends in .original1 is missing. Weights such as parametrizations."
        "weight_hh_l0.original0 are parametrized: call torch.nn.utils.parametrize",
    ),
    "a weight norm's lengths": (
        lambda: from_torch(
            weights_but("weight_hh_l0")
            | {"weight_hh_l0_g": ones((20, 5)), "weight_hh_l0_v": ones((20, 5))}
        ),
        "weight_hh_l0_g: expected shape [20, 1] or [1, 5] or [], as weight norm has it "
        "for weight_hh_l0_v of shape [20, 5], got [20, 5]. For another parametrization",
    ),
    "a normalised weight of another shape": (
        lambda: from_torch(
            weights_but("weight_hh_l0")
            | {"weight_hh_l0_g": ones((15, 1)), "weight_hh_l0_v": ones((15, 5))}
        ),
        "weight_hh_l0_v: expected shape [4H, H] = [20, 5], got [15, 5]. These look lik",
    ),
    "a weight and its parts": (
        lambda: from_torch(
            weights_but(weight_hh_l0_g=ones((20, 1)), weight_hh_l0_v=ones((20, 5)))
        ),
        "weight_hh_l0_v are both weight_hh_l0.",
    ),
    "a normalised LSTM inside another module": (
        lambda: from_torch({"rnn.weight_ih_l0_v": 0, "rnn.weight_ih_l0_g": 0}),
        "weight_ih_l0 is missing. It is there with prefix='rnn.'.",
    ),
    "a parametrized LSTM inside another module": (
        lambda: from_torch({"a.parametrizations.weight_ih_l0.original1": 0}),
        "weight_ih_l0 is missing. It is there with prefix='a.'.",
    ),
    "a quantized cell": (
        lambda: from_torch({"_packed_weight_ih": object()}),
        "Weights such as _packed_weight_ih are quantized: take the LSTM as it was",
    ),
    "a pruned weight's mask": (
        lambda: from_torch(
            weights_but("weight_hh_l0")
            | {"weight_hh_l0_orig": ones((20, 5)), "weight_hh_l0_mask": ones(5)}
        ),
        "weight_hh_l0_mask: expected shape that of weight_hh_l0_orig = [20, 5], got "
        "[5].",
    ),
}


@pytest.mark.parametrize(("call", "words"), ERRORS.values(), ids=ERRORS)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


def test_a_mask_is_of_numbers():
    mask = {"weight_hh_l0_orig": ones((20, 5)), "weight_hh_l0_mask": np.int32(1)}
    with pytest.raises(
        TypeError, match=r"weight_hh_l0_mask: expected a floating dtype"
    ):
        from_torch(weights_but("weight_hh_l0") | mask)
