"""A whole run of training: a plain loop, and everything that happens beside it."""

from __future__ import annotations

import inspect
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import optax

from lstm_jax.checks import options, slips
from lstm_jax.training.runs import modules
from lstm_jax.training.runs.beginning import Schedule
from lstm_jax.training.runs.monitor import Monitor, Plateau
from lstm_jax.training.runs.run import Diverged, Run
from lstm_jax.training.runs.signals import Interruption
from lstm_jax.training.steps import step as steps
from lstm_jax.training.steps.accumulation import Objective
from lstm_jax.training.steps.contract import LossFn
from lstm_jax.training.steps.state import Start, TrainState, check_start, create
from lstm_jax.types import Array, PyTree

Hook = Callable[[TrainState, dict[str, Any]], Any]


class StepOptions(TypedDict, total=False):
    """The options of :func:`make_train_step`, which :func:`fit` hands on."""

    accumulate: int
    clip_norm: float | None
    ema_decay: float | None
    compute_dtype: Any
    reset_rate: float
    start: Start | None


class Result(NamedTuple):
    """How a run ended, and what came of it.

    Attributes:
        reason: "done", "stopped early", "interrupted" or "diverged".
        state: the last :class:`TrainState`.
        best: the parameters of the best evaluation; None where nothing was monitored.
        best_step: its step.
        best_value: its figure.
        weights: what ``best`` and evaluations are of: "params", or "ema".
        history: the rows of metrics.csv as dicts, those before a resume included; of
            several processes the first has these.
        signal: the number of the signal that came during the run; None if none did.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from lstm_jax import training
        >>> square = lambda params, carry, batch, key: (params**2, (carry, {}))
        >>> args = square, optax.sgd(0.25), jnp.ones(()), [None]
        >>> result = training.fit(*args, steps=3, show=False)
        >>> result.reason, result.exit_status, float(result.state.params)
        ('done', 0, 0.125)
    """

    reason: str
    state: TrainState
    best: PyTree
    best_step: int | None
    best_value: float | None
    weights: str
    history: list[dict[str, Any]]
    signal: int | None = None

    @property
    def exit_status(self) -> int:
        """What a program should end with: 0 finished, 130 Ctrl-C, 143 SIGTERM."""
        if self.signal is not None:
            return 128 + self.signal
        return 1 if self.reason == "diverged" else 0


def fit(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    state: Any,
    batches: Any,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    carry: PyTree = (),
    key: Array | None = None,
    continues: bool | None = None,
    valid: Any = None,
    valid_fn: LossFn | None = None,
    evaluate_every: int | None = None,
    monitor: str | None = None,
    mode: str | None = None,
    min_delta: float = 0.0,
    patience: int | None = None,
    plateau: Plateau | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool | str = False,
    save_every: int | None = None,
    keep: int = 2,
    settings: Mapping[str, Any] | None = None,
    max_skipped: int = 10,
    log_every: int = 50,
    derived: Mapping[str, Callable[[dict[str, Any]], Any]] | None = None,
    flops_per_token: Any = None,
    tensorboard: bool = False,
    show: bool = True,
    hooks: Sequence[Hook] = (),
    **step_options: Unpack[StepOptions],
) -> Result:
    """Trains, evaluates, logs and saves; killed at any moment, it goes on bit for bit.

    One pass over ``batches`` is an epoch. The carry starts anew with each. Evaluation
    runs without a key and leaves the carry of training alone; it is of the average of
    the parameters where there is one.

    The first Ctrl-C or SIGTERM ends the run after the step that is on its way: all is
    saved, the result says "interrupted", and the program ends with 130 or 143 when it
    comes to its end, unless the run has gone on to its own end by then. The second acts
    as it would without this function.

    Where there are several processes, each runs the same program, with batches that
    :func:`lstm_jax.distributed.global_batch` makes. The first process writes what is
    written, and a folder that it alone sees is enough. All evaluate and call hooks, and
    all save and stop at the same step, a few after that of the signal. Where one fails,
    nothing more is saved: the newest checkpoint is there to go on from.

    Args:
        loss_fn: as for :func:`make_train_step`. Its metrics are a pytree of scalars and
            :class:`Weighted` figures, whose means over the steps of a row are logged;
            with a :class:`Weighted` loss, over their tokens.
        tx: an Optax gradient transformation.
        state: a :class:`TrainState`; or parameters: a pytree, linen's variables, or an
            ``nnx.Module``, which ``loss_fn`` is then given and which holds the last
            parameters in the end. It is copied.
        batches: ``epoch -> batches``, or batches that can be gone through again, such
            as a list. Whatever it is, the same epoch has the same batches: a resume
            goes through those that were trained on. An iterator is one epoch.
        steps: how many steps to take; the data begin again where they end.
        epochs: or how many passes over the data.
        carry: of the first state, where ``state`` is parameters.
        key: of the first state, where ``state`` is parameters.
        continues: whether rows go on from batch to batch, as a carry needs; what the
            batches say if None. Those of :func:`lstm_jax.data.stream_batches` do.
        valid: the held-out data, as ``batches``.
        valid_fn: what is evaluated; ``loss_fn`` if None.
        evaluate_every: steps; the end of each epoch if None. The last step always.
        monitor: the figure that decides, the held-out loss if None. The name of every
            figure of the evaluation begins with ``valid_``, or with ``ema_valid_``
            where it is of the average.
        mode: "min" or "max"; needed unless ``monitor`` ends in "loss".
        min_delta: what a gain has to be more than, measured from the last gain.
        patience: evaluations without a gain until the run stops; None for no limit.
        plateau: updates become smaller by it.
        out: the folder of the run: metrics.csv, loss.png, checkpoints. None for none.
        resume: True goes on with the run in ``out``, and is an error where there is
            none; "auto" begins one there; False is an error where there is one.
        save_every: steps; each evaluation and each end of an epoch if None. A new best
            and the last state are saved always.
        keep: how many of the newest checkpoints are kept, beside the best.
        settings: what the run depends on and a resume must not change, as JSON has it:
            a description (``model.to_config()``), a vocabulary, a seed.
        max_skipped: so many steps in a row without finite loss and gradient are an
            error.
        log_every: steps from row to row.
        derived: figures of a row that are computed from its others, by name.
        flops_per_token: of the whole step, for the share of the processor's best
            product that the run reaches; or a description, whose weights are counted.
        tensorboard: whether to write TensorBoard's files to ``out`` too.
        show: whether to write rows to the terminal.
        hooks: each is called as ``hook(state, row)`` after a row was written and what
            was due was saved. It must not keep the state's arrays, which are donated.
        **step_options: see :func:`make_train_step`.

    Returns:
        The :class:`Result`: last and best, whatever ended the run.

    Raises:
        Diverged: if loss or gradient were not finite ``max_skipped`` times in a row;
            its ``result`` has what a result has.
        FileNotFoundError: if there is nothing to resume.
        FileExistsError: if ``out`` holds a run already.
        BlockingIOError: if another process or thread trains in ``out``.
        ValueError: if an option does not fit, the data end too soon, a batch has no
            rows, a carry is handed on between batches that do not go on, or what is
            resumed was another run.
        Exception: what the data, a hook or the writer raised; the newest good state is
            saved before.

    Example:
        >>> import jax, jax.numpy as jnp, optax, lstm_jax as lj
        >>> from lstm_jax import training
        >>> model = lj.LSTM(1, 8)
        >>> def loss_fn(params, carry, xs, key):
        ...     _, ys = model.apply(params, xs[:, :-1], key=key)
        ...     mean = ys.mean(-1, keepdims=True)
        ...     loss = training.squared_error(mean, xs[:, 1:], weighted=True)
        ...     return loss, (carry, {})
        >>> xs = jnp.sin(jnp.arange(40.0).reshape(4, 10, 1))
        >>> params = model.init(jax.random.key(0))
        >>> tx = optax.sgd(0.5)
        >>> result = training.fit(
        ...     loss_fn, tx, params, [xs], steps=60, valid=[xs], show=False
        ... )
        >>> result.reason, result.history[-1]["valid_loss"] < 0.5
        ('done', True)
    """
    model = modules.functional(state)
    state = _state_of(model.params, tx, carry, key, step_options)
    plan = _plan(model.lift(loss_fn), tx, step_options, max_skipped)
    check_start(plan.objective.start, state.params, state.carry)
    run = Run(
        plan=plan,
        schedule=Schedule(
            steps,
            epochs,
            evaluate_every,
            save_every,
            log_every,
            bool(valid is not None),
        ),
        batches=batches,
        continues=continues,
        valid=valid,
        valid_fn=model.lift(loss_fn if valid_fn is None else valid_fn),
        monitor=_monitor(
            valid, plan.ema_decay, monitor, mode, min_delta, patience, plateau
        ),
        out=None if out is None else pathlib.Path(out).absolute(),
        keep=keep,
        settings=dict(settings or {}),
        derived=dict(derived or {}),
        flops_per_token=flops_per_token,
        tensorboard=tensorboard,
        show=show,
        hooks=tuple(hooks),
    )
    options.check_choice("resume", resume, (True, False, "auto"))
    try:
        return _run(run, state, resume)
    finally:
        if run.state is not None:
            model.give_back(run.state.params)


def _run(run: Run, state: TrainState, resume: bool | str) -> Result:
    with Interruption(None if run.out is None else str(run.out)) as interruption:
        try:
            reason = run.run(state, resume, interruption)
        except Diverged as error:
            error.result = _result(run, "diverged", None)
            raise
    return _result(run, reason, interruption.number)


def _state_of(
    params: Any, tx: Any, carry: PyTree, key: Any, step_options: StepOptions
) -> TrainState:
    if not isinstance(params, TrainState):
        averaged = step_options.get("ema_decay") is not None
        return create(params, tx, carry, key=key, ema=averaged)
    if jax.tree.leaves(carry) or key is not None:
        raise ValueError(
            "carry, key: expected none beside a TrainState, which has its own: "
            "training.create(params, tx, carry, key=key)."
        )
    modules.check_parameters(params.params)
    return params


def _plan(loss_fn: Any, tx: Any, given: Any, max_skipped: int) -> steps.Plan:
    options.check_positive("max_skipped", max_skipped)
    of_step = {
        name: given[name] for name in ("clip_norm", "ema_decay") if name in given
    }
    rest = {name: value for name, value in given.items() if name not in of_step}
    unknown = set(rest) - set(Objective._fields)
    if unknown:
        taken = [name for name in inspect.signature(fit).parameters]
        names = [*taken[:-1], *StepOptions.__annotations__]
        raise TypeError(
            " ".join(
                f"{name}: fit takes no such argument. {slips.hint(name, names)}"
                for name in sorted(unknown)
            )
        )
    plan = steps.plan(Objective(loss_fn, **rest), tx, **of_step)
    return plan._replace(max_skipped=max_skipped)


def _monitor(
    valid: Any, ema_decay: Any, name: str | None, *rule: Any
) -> Monitor | None:
    if valid is not None:
        prefix = "valid_" if ema_decay is None else "ema_valid_"
        return Monitor(prefix + "loss" if name is None else name, *rule)
    needed = ("monitor", "mode", "patience", "plateau")
    given = zip(needed, (name, rule[0], rule[2], rule[3]), strict=True)
    for option, value in given:
        if value is not None:
            raise ValueError(f"{option}: expected valid= data beside it, got none.")
    return None


def _result(run: Run, reason: str, number: int | None) -> Result:
    standing = run.standing
    return Result(
        reason,
        run.state,
        run.best,
        standing.best_step,
        standing.best,
        run.weights,
        run.rows,
        number,
    )
