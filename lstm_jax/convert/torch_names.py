"""The names of an LSTM's weights in a state dict, and the forms of these weights.

What wraps or changes a module changes the names: ``module.`` and ``_orig_mod.`` come
into them, weight norm and pruning keep two arrays in place of one weight, weight drop
keeps the weight beside the dropped copy. All of these come back as plain weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from lstm_jax.checks import arrays as shapes
from lstm_jax.convert import layers as records
from lstm_jax.numerics import accumulation_dtype
from lstm_jax.types import Array

SUFFIXES = ("", "_reverse")
KINDS = {
    "kernel": "weight_ih",
    "recurrent_kernel": "weight_hh",
    "bias": "bias_ih",
    "projection_kernel": "weight_hr",
}
# What wraps a module without changing it: DataParallel, weight drop, torch.compile,
# fully sharded training, activation checkpointing.
_WRAPPERS = (
    *("module", "_orig_mod", "_fsdp_wrapped_module"),
    "_checkpoint_wrapped_module",
)
# The forms that are made plain: the ends of an array's name, that of the weight itself
# first. A new form of weight norm is registered as a parametrization.
_FORMS = {
    "raw": (r"(.+)_raw",),
    "norm": (r"((?:weight|bias)_\w+)_v", r"((?:weight|bias)_\w+)_g"),
    "new norm": (
        r"parametrizations\.((?:weight|bias)_\w+)\.original1",
        r"parametrizations\.((?:weight|bias)_\w+)\.original0",
    ),
    "pruned": (r"((?:weight|bias)_\w+)_orig", r"((?:weight|bias)_\w+)_mask"),
}
# Other forms by their names, and what makes plain weights of them.
_OTHER_FORMS = {
    r"parametrizations\.(weight|bias)_": "are parametrized: call torch.nn.utils."
    "parametrize.remove_parametrizations(lstm, name), and then state_dict()",
    r"_all_weight_values\.|_packed_weight_": "are quantized: take the LSTM as it was "
    "before, and then state_dict()",
    r"weight_\w+_u$": "are spectrally normalised: call torch.nn.utils."
    "remove_spectral_norm(lstm, name), and then state_dict()",
}
_EMPTY = (
    "There is no name at all, as where a dynamically quantized LSTM was saved: its "
    "weights are packed. Take the LSTM as it was before it was quantized."
)


class Source(NamedTuple):
    """Where one weight is in a state dict.

    Attributes:
        form: a key of the known forms, or "plain".
        keys: of its arrays there, the weight itself first.
    """

    form: str
    keys: tuple[str, ...]

    @property
    def key(self) -> str:
        """What the weight is called in errors."""
        return self.keys[0]

    def read(self, state_dict: Mapping[str, Any]) -> Array:
        """The weight, multiplied out where there are two arrays."""
        arrays = [read(key, state_dict[key]) for key in self.keys]
        if len(arrays) == 1:
            return arrays[0]
        for key, array in zip(self.keys, arrays, strict=True):
            shapes.check_array(key, array)
        if self.form == "pruned":
            weight, mask = arrays
            shapes.check_shape(self.keys[1], f"that of {self.key}", weight.shape, mask)
            return weight * mask.astype(weight.dtype)
        return _normalised(self.keys, *arrays)


def read(name: str, value: Any) -> Array:
    """A tensor of any device, NumPy or JAX array as a JAX array."""
    if hasattr(value, "detach"):
        try:
            value = value.detach().cpu()
        except (NotImplementedError, RuntimeError) as error:
            raise TypeError(
                f"{name}: expected a tensor with values, got one that can't be "
                f"copied to the CPU: {error}"
            ) from error
    return records.take_weight(name, value)


def _normalised(keys: tuple[str, ...], v: Array, g: Array) -> Array:
    """Weight norm's ``g * v / |v|``; where g has one number, the norm is over all.

    The axes that g has are those that norms are not taken over.
    """
    kept = [
        tuple(size if axis == one else 1 for axis, size in enumerate(v.shape))
        for one in range(v.ndim)
    ]
    if g.shape not in ((), *kept):
        listed = " or ".join(str(list(shape)) for shape in (*kept, ()))
        raise ValueError(
            f"{keys[1]}: expected shape {listed}, as weight norm has it for {keys[0]} "
            f"of shape {list(v.shape)}, got {list(g.shape)}. For another "
            "parametrization call torch.nn.utils.parametrize."
            "remove_parametrizations(lstm, name), and then state_dict()."
        )
    axes = tuple(n for n in range(v.ndim) if not g.ndim or g.shape[n] == 1)
    wide = accumulation_dtype(v.dtype)
    direction, length = v.astype(wide), g.astype(wide)
    norm = jnp.sqrt(jnp.sum(jnp.square(direction), axes, keepdims=bool(g.ndim)))
    return (direction * (length / norm)).astype(v.dtype)


def find(state_dict: Any, prefix: str) -> dict[str, Source]:
    """Where the weights are, by the names that an ``nn.LSTM`` would give."""
    _check_mapping(state_dict)
    names = below(state_dict, prefix)
    sources = _sources(names)
    for kind in (*KINDS.values(), "bias_hh"):
        if kind in sources:
            sources[f"{kind}_l0"] = sources.pop(kind)
    if "weight_ih_l0" not in sources:
        hint = _elsewhere(state_dict) or _other_form(names)
        if not hint:
            of_an_lstm = any(re.match(r"(weight|bias)_(ih|hh)", name) for name in names)
            hint = _SHARED if of_an_lstm else _names_there(state_dict, prefix)
        raise ValueError(f"state_dict: {prefix}weight_ih_l0 is missing. {hint}")
    return sources


def below(state_dict: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Keys by what follows the prefix in them, without what wraps modules.

    Where no key begins with the prefix, what wraps modules may stand inside it too.
    """
    below = {
        key: _plain(str(key).removeprefix(prefix))
        for key in state_dict
        if str(key).startswith(prefix)
    }
    if not below:
        wanted, plain = _plain(prefix), {key: _plain(str(key)) for key in state_dict}
        below = {
            key: name.removeprefix(wanted)
            for key, name in plain.items()
            if name.startswith(wanted)
        }
    names = {}
    for key, name in below.items():
        if name in names:
            raise ValueError(
                f"state_dict: {names[name]} and {key} are both {name} after the "
                f"prefix {prefix!r}. Pass a longer one."
            )
        names[name] = key
    # Weight drop keeps the weight on the module it wraps, or on what wraps that one.
    outside = prefix.removesuffix("module.")
    for key in state_dict:
        inner = str(key).removeprefix(outside)
        found = inner.endswith("_raw") and "." not in inner
        if found and outside != prefix and outside + inner == key:
            names.setdefault(inner, key)
    return names


def _plain(name: str) -> str:
    """A name without what wraps modules."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _sources(names: Mapping[str, str]) -> dict[str, Source]:
    """The weights by their plain names; what is none stays under its own."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    for name, key in names.items():
        weight, form, place = _form_of(name)
        found.setdefault((weight, form), {})[place] = key
    sources = {}
    for (weight, form), keys in found.items():
        for place, pattern in enumerate(_FORMS.get(form, "")):
            if place not in keys:
                (there,) = keys.values()
                end = pattern.rpartition(")")[2].replace("\\", "")
                hint = _other_form(names) or f"It and {there} are one weight."
                raise ValueError(
                    f"state_dict: the array of {weight} whose name ends in {end} is "
                    f"missing. {hint}"
                )
        source = Source(form, tuple(keys[place] for place in sorted(keys)))
        # Weight drop puts a copy under the plain name.
        if weight not in sources or sources[weight].form == "plain" and form == "raw":
            sources[weight] = source
        elif (form, sources[weight].form) != ("plain", "raw"):
            raise ValueError(
                f"state_dict: {sources[weight].key} and {source.key} are both {weight}."
            )
    return sources


def _form_of(name: str) -> tuple[str, str, int]:
    """The weight that an array belongs to, its form, and its place in the form."""
    for form, patterns in _FORMS.items():
        for place, pattern in enumerate(patterns):
            if match := re.fullmatch(pattern, name):
                return match[1], form, place
    return name, "plain", 0


def _check_mapping(state_dict: Any) -> None:
    if isinstance(state_dict, Mapping):
        return
    hint = ""
    if hasattr(state_dict, "state_dict"):
        hint = "Pass module.state_dict()."
    raise TypeError(
        "state_dict: expected a dict of arrays by name, got "
        f"{type(state_dict).__name__}. {hint}".rstrip()
    )


_SHARED = (
    "Files lose weights that share memory, as a GPU's do: save "
    "{name: value.clone() for name, value in module.state_dict().items()}."
)
_FIRST = re.compile(
    r"(|.*?\.)(?:parametrizations\.)?weight_ih(?:_l0)?"
    r"(?:_v|_g|_orig|_mask|_raw|\.original[01])?"
)


def _elsewhere(state_dict: Mapping[str, Any]) -> str:
    """Where else an LSTM's names are."""
    found = {m[1] for m in map(_FIRST.fullmatch, map(str, state_dict)) if m}
    if found:
        return f"It is there with prefix={' or '.join(map(repr, sorted(found)))}."
    # A file's arrays, which are no dict's, are not read for the sake of an error.
    inside = state_dict if isinstance(state_dict, dict) else {}
    for name, value in inside.items():
        if isinstance(value, Mapping) and any(
            _FIRST.fullmatch(str(inner)) for inner in value
        ):
            return f"It is in the dict under {name!r}: pass that one."
    return ""


def _names_there(state_dict: Mapping[str, Any], prefix: str) -> str:
    """Which names there are, where no LSTM's are."""
    if not state_dict:
        return _EMPTY
    begins = sorted({str(name).split(".")[0] for name in state_dict})
    words = f"Names begin with {', '.join(begins)}; the prefix is {prefix!r}."
    if prefix:
        words = f"{words} A dynamically quantized LSTM has no names of its own."
    return words


def _other_form(names: Mapping[str, str]) -> str:
    """Names the form that weights are in, where it is not known."""
    for pattern, words in _OTHER_FORMS.items():
        for name, key in names.items():
            if re.search(pattern, name):
                return f"Weights such as {key} {words}."
    return ""


def ends_of(sources: Mapping[str, Source]) -> list[list[str]]:
    """For each layer the ends of its names, one a direction."""
    suffixes = SUFFIXES if "weight_ih_l0_reverse" in sources else SUFFIXES[:1]
    ends = []
    while f"weight_ih_l{len(ends)}" in sources:
        ends.append([f"_l{len(ends)}{suffix}" for suffix in suffixes])
    return ends


def check(sources: Mapping[str, Source], ends: list[list[str]], prefix: str) -> None:
    """Checks that nothing is missing and nothing else there."""
    kinds = ["weight_ih", "weight_hh"]
    if any(name.startswith("bias_") for name in sources):
        kinds += ["bias_ih", "bias_hh"]
    if any(name.startswith("weight_hr") for name in sources):
        kinds.append("weight_hr")
    known = [kind + end for layer in ends for end in layer for kind in kinds]
    other_form = _other_form({name: source.key for name, source in sources.items()})
    if missing := [prefix + name for name in known if name not in sources]:
        hint = other_form
        if not hint and any("weight_" in name for name in missing):
            hint = _SHARED
        verb = "is" if len(missing) == 1 else "are"
        raise ValueError(
            f"state_dict: {', '.join(missing)} {verb} missing. {hint}".rstrip()
        )
    if unknown := sorted(str(sources[name].key) for name in set(sources) - set(known)):
        hint = other_form
        inside = str(sources["weight_ih_l0"].key).rpartition("weight_ih")[0]
        if not hint and inside != prefix and not unknown[0].startswith(inside):
            hint = f"The LSTM's names begin with prefix={inside!r}."
        if not hint and any("." in name.removeprefix(prefix) for name in unknown):
            hint = (
                "For an LSTM inside a larger module pass prefix, such as "
                "prefix='lstm.'."
            )
        raise ValueError(
            f"state_dict: unknown names {', '.join(unknown)}. {hint}".rstrip()
        )
