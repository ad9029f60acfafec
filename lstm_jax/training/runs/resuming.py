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
from lstm_jax.distributed import together

_ABSENT = object()
# More letters of a value than these are not shown.
_LONG = 80


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
        found = _difference(f"settings[{name!r}]", plain(was[name]), plain(now[name]))
        if found is not None:
            where, expected, got = found
            raise ValueError(
                f"{where}: expected {expected}, with which the run in {out} was begun, "
                f"got {got}."
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


def recorded(
    out: Any, record: dict[str, Any] | None, now: dict[str, Any]
) -> dict[str, Any]:
    """A new record, or the one that the run goes on with, if it is of this run.

    Args:
        out: the folder of the run.
        record: of the run that goes on; None for a new one.
        now: digests of batches, and the names of figures; without these where no batch
            is left to tell them by.

    Raises:
        ValueError: if the run was begun with other data, or had other figures.
    """
    if record is None:
        begun = {"settled": True, "sums": {}, "tokens": 0, "seconds": 0.0}
        return begun | {"grad_norm": None} | now
    for of, key, name in (
        ("batches", "first", "first"),
        ("batches", "last", "last"),
        ("valid", "valid", "first"),
    ):
        was, got = record.get(key), now[key]
        if None not in (was, got) and was != got:
            raise ValueError(
                f"{of}: expected the data that the run in {out} was begun with, got "
                f"another {name} batch. The same epoch must have the same batches, in "
                "the same order."
            )
    was, got = record["columns"], now.get("columns", record["columns"])
    if was != got:
        raise ValueError(
            f"figures: expected those that the run in {out} was begun with, "
            f"{', '.join(was)}, got {', '.join(got)}."
        )
    return record


def digest(batch: Any) -> str:
    """A digest of all numbers of a batch."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(border.take_leaves("batches", batch)):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(together.whole(leaf))
        sha.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples are lists."""
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _difference(where: str, was: Any, now: Any) -> tuple[str, str, str] | None:
    """Where two values differ first, and the two that stand there, in words."""
    if _same(was, now):
        return None
    if isinstance(was, dict) and isinstance(now, dict):
        for name in sorted({*was, *now}):
            one, other = was.get(name, _ABSENT), now.get(name, _ABSENT)
            if found := _difference(f"{where}[{name!r}]", one, other):
                return found
        return None
    place = 0
    if type(was) is type(now) and isinstance(was, (str, list)):
        pairs = enumerate(itertools.zip_longest(was, now, fillvalue=_ABSENT))
        place, pair = next((n, pair) for n, pair in pairs if not _same(*pair))
        if isinstance(was, list) and max(len(repr(was)), len(repr(now))) > _LONG:
            return _difference(f"{where}[{place}]", *pair)
    return where, _shown(was, place), _shown(now, place)


def _same(one: Any, other: Any) -> bool:
    return one == other or repr(one) == repr(other)  # NaN is no other NaN.


def _shown(value: Any, place: int) -> str:
    """A value; of a long text what is around a place."""
    text = "none" if value is _ABSENT else repr(value)
    if len(text) <= _LONG:
        return text
    if not isinstance(value, str):
        return f"{text[:_LONG]}..."
    start = max(place - 8, 0)
    return f"{value[start : start + 32]!r} from place {start} of {len(value)} on"
