"""The checkpoints of one run: written beside their place, moved into it in one go."""

from __future__ import annotations

import operator
import os
import pathlib
import re
import shutil
import threading
import uuid
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from lstm_jax.checks import options
from lstm_jax.distributed import together
from lstm_jax.training.disk import aside, sealed, weights
from lstm_jax.types import PyTree

_STEP = re.compile(r"step_(0|[1-9]\d*)")
_WRITING, _DELETING = "writing_", "deleting_"


class Restored(NamedTuple):
    """What :meth:`Checkpoints.restore` found.

    Attributes:
        step: the step that it was saved at.
        state: the pytree.
        record: what was saved beside it.
    """

    step: int
    state: Any
    record: Any


class Checkpoints:
    """The checkpoints of one run, in a folder: whole, checked, written by Orbax.

    A checkpoint is written while training goes on, beside its place, and moved there as
    the last thing: whenever the process is killed, the older ones are there and good.
    Each file and each leaf has a SHA-256, which is compared when it is read. Nothing
    that may be of use is deleted: what is damaged, was half written or belongs to a
    branch that training turned away from goes to the folder ``aside``, with a warning.

    Any number of devices and processes may save, and another number restore. Where
    there are several processes, all of them make the same calls; the first one writes
    and reads, and needs the folder alone.

    Leave with :meth:`close`, or by ``with``: what the writer raises last is raised
    there, and a program that ends without loses what is not written yet.

    Args:
        folder: the folder, made when the first checkpoint is saved.
        keep: how many of the newest checkpoints are kept. Those that one of them names
            as the best are kept besides.

    Raises:
        TypeError: if ``keep`` is no int, or ``folder`` no path.
        ValueError: if ``keep`` is not positive, or ``folder`` is a web address.

    Example:
        >>> import pathlib, tempfile, jax, lstm_jax as lj
        >>> from lstm_jax import training
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "run"
        >>> state = {"params": lj.LSTM(3, 5).init(jax.random.key(0)), "epoch": 3}
        >>> with training.Checkpoints(folder, keep=2) as checkpoints:
        ...     checkpoints.save(100, state, {"loss": 0.5}, best=100)
        ...     checkpoints.save(200, state, {"loss": 0.7}, best=100)
        ...     checkpoints.save(300, state, {"loss": 0.6}, best=100)
        >>> checkpoints.steps()
        (100, 200, 300)
        >>> step, restored, record = checkpoints.restore(like=state)
        >>> step, restored["epoch"], record
        (300, 3, {'loss': 0.6})
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 2) -> None:
        """Nothing is read or made yet."""
        if "://" in os.fspath(folder):
            raise ValueError(
                f"folder: expected a folder of this machine, got {os.fspath(folder)!r}."
            )
        options.check_positive("keep", keep)
        self._folder, self._keep = pathlib.Path(folder).absolute(), keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def steps(self) -> tuple[int, ...]:
        """The steps that have a checkpoint, in ascending order.

        Example:
            >>> from lstm_jax import training
            >>> training.Checkpoints("a-new-run").steps()
            ()
        """
        return tuple(together.led("checkpoints", lambda: [*self.steps_here()]))

    def steps_here(self) -> tuple[int, ...]:
        """The same as this process sees it, whoever else calls it."""
        if not self._folder.is_dir():
            return ()
        matches = (_STEP.fullmatch(name) for name in os.listdir(self._folder))
        return tuple(sorted(int(match[1]) for match in matches if match))

    def save(
        self,
        step: int,
        state: PyTree,
        record: dict[str, Any] | None = None,
        *,
        best: int | None = None,
    ) -> None:
        """Starts to write a checkpoint, and comes back once all is copied.

        The buffers of ``state`` may then be donated or overwritten. One checkpoint is
        written at a time: this first waits for the one before.

        Checkpoints of this step and later ones are of a branch that training turned
        away from; they go aside when this one is written.

        Args:
            step: the step.
            state: any pytree of arrays, numbers and random keys, as of
                :func:`save_weights`.
            record: what goes with it, as JSON has it; floats come back bit for bit.
            best: the step of the best checkpoint so far, which may be this one.

        Raises:
            Exception: whatever the writing of the checkpoint before raised, an OSError
                for a full disk. This one is not written then: call again.
            TypeError: if a leaf is neither an array nor a number, or a value of the
                record is none of JSON's.
            ValueError: if a leaf has a dtype that :func:`save_weights` has not, or
                ``best`` is later than ``step``.
            TimeoutError: if a process does not save; it says which.

        Example:
            >>> import pathlib, tempfile, numpy as np
            >>> from lstm_jax import training
            >>> folder = pathlib.Path(tempfile.mkdtemp())
            >>> with training.Checkpoints(folder) as checkpoints:
            ...     checkpoints.save(1, {"w": np.ones(3)}, {"losses": [0.5, 0.25]})
        """
        step = _checked_step("step", step)
        best = None if best is None else _checked_step("best", best)
        if best is not None and best > step:
            raise ValueError(f"best: expected {step} or an earlier step, got {best}.")
        if record is not None and not isinstance(record, dict):
            raise TypeError(f"record: expected a dict, got {type(record).__name__}.")
        text = sealed.written_record(record)
        self.wait()
        together.judged("checkpoint", step, _check_alike)
        arrays = sealed.copied(state)
        if not together.first():
            return
        said, there = self._tidy(), self.steps_here()
        later = [other for other in there if other >= step]
        if later:
            said.append(
                f"{self._folder}: step {step} is saved after {_listed(later)}, which "
                f"go to {aside.FOLDER}/."
            )
        if best not in (None, step, *there):
            said.append(
                f"best: expected a step with a checkpoint, got {best}; there are "
                f"{_listed(there)}."
            )
        self._thread = threading.Thread(
            target=self._run, args=(step, arrays, text, best), name=f"save step {step}"
        )
        self._thread.start()
        _warn(said)

    def wait(self) -> None:
        """Waits until all is written.

        Raises:
            Exception: whatever the writer raised. It is raised once.

        Example:
            >>> from lstm_jax import training
            >>> training.Checkpoints("a-new-run").wait()
        """
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def restore(self, like: PyTree, step: int | None = None) -> Restored:
        """Reads the newest checkpoint that is not damaged, or that of a step.

        Damaged ones go aside as soon as a good one before them is found.

        Args:
            like: a pytree of the same structure and shapes, as of :func:`load_weights`.
                Its arrays and shapes say by their shardings where to put what is read;
                what has none goes to the default device.
            step: the step; None for the newest.

        Returns:
            ``(step, state, record)``, the state in the structure of ``like``. Where
            that has a NumPy array or a Python number, so has this.

        Raises:
            FileNotFoundError: if there is no checkpoint, or none of that step.
            ValueError: if none is good, the one of ``step`` is damaged, or it holds
                other leaves, shapes, dtypes or kinds of keys than ``like``.
            TypeError: if a leaf of ``like`` has no shape and is no number.
            Exception: whatever the writing of the checkpoint before raised.

        Example:
            >>> import pathlib, tempfile, numpy as np
            >>> from lstm_jax import training
            >>> folder = pathlib.Path(tempfile.mkdtemp())
            >>> with training.Checkpoints(folder) as checkpoints:
            ...     checkpoints.save(1, {"w": np.ones(3)})
            ...     checkpoints.restore({"w": np.zeros(3)}).state["w"].tolist()
            [1.0, 1.0, 1.0]
        """
        self.wait()
        expected = weights.named("like", like)
        found: list[dict[str, np.ndarray]] = []
        said: list[str] = []

        def read():
            number, arrays, record = self._read(expected, step, said)
            found.append(arrays)
            return number, record

        try:
            number, record = together.led("checkpoints", read)
        finally:
            _warn(said)
        arrays = found[0] if found else _empty(expected)
        if jax.process_count() > 1:
            sent = together.sent([*arrays.values()])
            arrays = dict(zip(arrays, sent, strict=True))
        leaves = sealed.placed(str(self._path(number)), arrays, expected)
        state = jax.tree.structure(like).unflatten(leaves)
        return Restored(number, state, sealed.read_record(record))

    def _read(
        self, expected: dict[str, Any], step: int | None, said: list[str]
    ) -> tuple[int, dict[str, np.ndarray], str]:
        """The step that is good, its arrays and record; and what is to be said."""
        said += self._tidy()
        there = self.steps_here()
        asked = there if step is None else (_checked_step("step", step),)
        if not set(asked) & set(there):
            which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise FileNotFoundError(
                f"{self._folder}: {which}; there are {_listed(there)}."
            )
        damaged: dict[int, str] = {}
        for number in reversed(asked):
            try:
                arrays, record = sealed.read(self._path(number), expected)
            except sealed.Damaged as error:
                damaged[number] = f"step {number}: {error}"
                continue
            said += [self._put_aside(other, why) for other, why in damaged.items()]
            return number, arrays, record
        raise ValueError(
            f"{self._folder}: expected a checkpoint as it was written, got damaged "
            f"ones only: {'; '.join(damaged.values())}. Nothing was moved or deleted."
        )

    def close(self) -> None:
        """Waits until all is written; the same as :meth:`wait`.

        Raises:
            Exception: whatever the writer raised.

        Example:
            >>> from lstm_jax import training
            >>> training.Checkpoints("a-new-run").close()
        """
        self.wait()

    def __enter__(self) -> Checkpoints:
        """Returns itself."""
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Closes; an error that is on its way is not replaced by the writer's."""
        try:
            self.close()
        except Exception as failed:
            if error is None:
                raise
            error.add_note(f"The last checkpoint was not written either: {failed!r}")

    def _path(self, step: int) -> pathlib.Path:
        return self._folder / f"step_{step}"

    def _run(self, step: int, *contents: Any) -> None:
        """What the thread does: errors wait for the next call."""
        try:
            self._write(step, *contents)
        except BaseException as error:
            error.add_note(
                f"This was the checkpoint of step {step}, in {self._folder}."
            )
            self._error = error
            if not threading.main_thread().is_alive():
                raise  # No one is left to call; so it is printed at least.

    def _write(self, step: int, arrays: dict, record: str, best: int | None) -> None:
        partial = self._folder / f"{_WRITING}{step}_{uuid.uuid4().hex[:8]}"
        partial.mkdir(parents=True)
        with aside.held(partial):
            try:
                sealed.fill(partial, step, arrays, record, best)
                # The latest first, so that at any time the newest is of one branch.
                for other in reversed(self.steps_here()):
                    if other >= step:
                        aside.move(self._path(other))
                os.rename(partial, self._path(step))
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        sealed.sync(self._folder)
        self._delete_old()

    def _delete_old(self) -> None:
        """Deletes what is neither one of the newest nor the best of one of these."""
        there = self.steps_here()
        kept = set(there[-self._keep :])
        try:
            kept |= {sealed.manifest(self._path(step))["best"] for step in tuple(kept)}
        except sealed.Damaged:
            return  # It does not say which one is the best: delete none.
        for step in set(there) - kept:
            away = self._folder / f"{_DELETING}{step}_{uuid.uuid4().hex[:8]}"
            os.rename(self._path(step), away)
            shutil.rmtree(away)

    def _tidy(self) -> list[str]:
        """Moves aside what an earlier process left half written; what to say of it."""
        said: list[str] = []
        if not self._folder.is_dir():
            return said
        for path in sorted(self._folder.iterdir()):
            if path.name.startswith(_DELETING):
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.startswith(_WRITING) and not aside.is_held(path):
                said.append(f"{path} is half written: {aside.tried(path)}.")
        return said

    def _put_aside(self, step: int, why: str) -> str:
        path = self._path(step)
        return f"{path} is damaged, {why}: {aside.tried(path)}. An older one is used."


def _checked_step(name: str, step: Any) -> int:
    try:
        number = operator.index(step)
    except TypeError:
        raise TypeError(
            f"{name}: expected an integer, got {step!r} of type {type(step).__name__}."
        ) from None
    if number < 0:
        raise ValueError(f"{name}: expected 0 or more, got {number}.")
    return number


def _check_alike(steps: list[int]) -> None:
    if len({*steps}) > 1:
        raise ValueError(
            f"step: expected one on all processes, got {_listed(steps)} of process 0 "
            "and those after it."
        )


def _empty(like: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays of the shapes that are expected, where another process reads."""
    specs = {name: weights.spec_of(name, leaf) for name, leaf in like.items()}
    return {name: np.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}


def _warn(said: list[str]) -> None:
    for text in said:
        warnings.warn(text, stacklevel=3)


def _listed(steps: Any) -> str:
    return ", ".join(map(str, steps)) or "none"
