"""What a run that goes on must have in common with the one that was begun."""

from __future__ import annotations

import hashlib
import itertools
import json
import pathlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.checks import border


def settings_of(out: Any, step: int) -> dict[str, Any] | None:
    """The settings of a checkpoint as they lie on disk; None where none can be read."""
    path = pathlib.Path(out) / "checkpoints" / f"step_{step}" / "record.json"
    try:
        return json.loads(path.read_bytes())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # A damaged one: whoever reads it whole says so.


def check_settings(out: Any, was: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses other settings, and shows where they differ."""
    for name in sorted({*was, *now}):
        if name not in was or name not in now:
            which = "new ones" if name in now else "none"
            raise ValueError(
                f"settings[{name!r}]: expected those that the run in {out} was begun "
                f"with, got {which}."
            )
        difference = _difference(plain(was[name]), plain(now[name]))
        if difference is not None:
            raise ValueError(
                f"settings[{name!r}]: expected what the run in {out} was begun with, "
                f"got another: {difference}."
            )


def check_monitor(out: Any, was: dict[str, Any] | None, now: Any) -> None:
    """Refuses another figure: the best so far is of the one that there was."""
    if not was or not now:
        return
    for name in ("name", "mode"):
        if was[name] != now[name]:
            raise ValueError(
                f"{'monitor' if name == 'name' else name}: expected {was[name]!r}, as "
                f"the run in {out} was begun with, got {now[name]!r}."
            )


def say_changes(out: Any, was: dict[str, Any], now: dict[str, Any]) -> None:
    """Says what a resume may change, since it may not be all that has to be."""
    now = plain(now)
    changed = [
        f"{name}={now[name]} (was {was[name]})"
        for name in was
        if name in now and was[name] != now[name]
    ]
    if changed:
        warnings.warn(
            f"The run in {out} goes on with {', '.join(changed)}. A learning rate that "
            "falls over a number of steps falls over the one that tx was made with.",
            stacklevel=6,
        )


def check_batch(
    out: pathlib.Path | None, of: str, name: str, was: Any, now: Any
) -> None:
    """Refuses other data, by the digest of a batch."""
    if None not in (was, now) and was != now:
        raise ValueError(
            f"{of}: expected the data that the run in {out} was begun with, got "
            f"another {name} batch. The same epoch must have the same batches, in the "
            "same order."
        )


def digest(batch: Any) -> str:
    """A digest of all numbers of a batch."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(border.take_leaves("batches", batch)):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples are lists."""
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _difference(was: Any, now: Any) -> str | None:
    """Where two values differ first, in words."""
    if was == now or json.dumps(was) == json.dumps(now):  # NaN is no other NaN.
        return None
    if isinstance(was, dict) and isinstance(now, dict):
        for name in sorted({*was, *now}):
            if was.get(name) != now.get(name):
                return f"{name}: {_difference(was.get(name), now.get(name))}"
    if isinstance(was, (str, list)) and isinstance(now, (str, list)):
        pairs = itertools.zip_longest(was, now)
        place, (one, other) = next(
            (n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1]
        )
        return f"{one!r} -> {other!r} at place {place}"
    return f"{was!r} -> {now!r}"
