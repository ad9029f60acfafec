"""One step of training, truncated where a carry is handed on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from lstm_jax.checks import border, options
from lstm_jax.numerics import accumulation_dtype
from lstm_jax.training.steps import contract
from lstm_jax.training.steps.accumulation import Gradient, Objective, gradient
from lstm_jax.training.steps.contract import LossFn, Value
from lstm_jax.training.steps.state import Start, TrainState, check_start, start_of
from lstm_jax.types import Array, PyTree

TrainStep = Callable[..., tuple[TrainState, PyTree]]


class Plan(NamedTuple):
    """What a step does; see :func:`make_train_step`."""

    objective: Objective
    tx: optax.GradientTransformation
    clip_norm: float | None = None
    ema_decay: float | None = None
    max_skipped: int | None = None


class Report(NamedTuple):
    """What a step tells of itself.

    Attributes:
        loss: a mean, or the terms of one.
        metrics: as ``loss_fn`` returned them.
        grad_norm: the global norm before clipping; None where nothing is clipped.
        wrong: -1 where all was finite, else 0 for the loss, n + 1 for leaf n of the
            gradient.
        skipped_in_row: as in the state.
    """

    loss: Value
    metrics: PyTree
    grad_norm: Array | None
    wrong: Array
    skipped_in_row: Array | None


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    compute_dtype: Any = None,
    reset_rate: float = 0.0,
    start: Start | None = None,
) -> TrainStep:
    """Makes the jitted step from one window to the next.

    The carry enters as an argument of the step and is not differentiated, so the
    gradient ends at the window's first step while the state itself goes on: this is all
    that truncation is.

    A step whose loss or gradient is not finite is skipped: parameters, the optimizer's
    state and the average stay bit for bit as they were, the carry starts anew, and
    ``state.skipped`` counts it. It is judged before clipping.

    Args:
        loss_fn: ``loss_fn(params, carry, batch, key) -> (loss, (carry, metrics))``, the
            carry of the same structure as the one that came. Where nothing is carried
            it is ``()``, where there are no metrics ``{}``. The loss is a scalar, or a
            :class:`Weighted` total, as the losses here return with ``weighted=True``,
            or a tuple of them: each is divided by its own weight, a constant, and they
            are added. A penalty is ``Weighted(penalty, 1)``.
        tx: an Optax gradient transformation.
        accumulate: into how many parts the rows of batch and carry, axis 0 of every
            leaf, are split, to be run one after the other in less memory. Totals and
            weights are added up and divided once, so that loss and gradient are those
            of the whole batch. What are left of the rows are a smaller part. Needs a
            weighted loss and weighted metrics; each part has noise of its own.
        clip_norm: largest global norm of a gradient; also where its square would
            overflow.
        ema_decay: of the moving average that ``training.create(ema=True)`` keeps, after
            n updates at most ``(1 + n) / (10 + n)``.
        compute_dtype: floating parameters are given to ``loss_fn`` in it, such as
            ``jnp.bfloat16``; they, their gradient and the optimizer's state stay in
            their own dtype.
        reset_rate: :func:`reset_rows` is done to the carry before each step at this
            rate, such as 1/16. Needs a key.
        start: ``start(params, rows)`` is the carry that ``rows`` streams start from,
            such as ``lambda params, rows: model.initial_state(params, (rows,))``; zeros
            if None.

    Returns:
        ``train_step(state, batch, key=None) -> (state, metrics)``; batch and key may be
        None. Where the state has a key and none is given, each step draws its own from
        it. The buffers of the state that goes in are used again for the one that comes
        out (donated): keep no reference to it. Those of a NumPy batch are copied before
        the call is back, so that a loader may fill them again.

    Raises:
        TypeError: if ``loss_fn`` does not take four arguments or, at the first step,
            does not return two pairs, or a mean where parts are accumulated.
        ValueError: if an option is out of range; at the first step, if the loss is no
            scalar, the carry that comes back has another structure, a leaf has not as
            many rows as the others, or ``start`` is missing where it is learned.

    Example:
        >>> import jax, jax.numpy as jnp, optax, lstm_jax as lj
        >>> from lstm_jax import training
        >>> model = lj.LSTM(3, 5)
        >>> def loss_fn(params, carry, batch, key):
        ...     carry, ys = model.apply(params, batch, carry, key=key)
        ...     loss = jnp.mean(ys**2)
        ...     return loss, (carry, {"loss": loss})
        >>> params, tx = model.init(jax.random.key(0)), optax.sgd(1e-3)
        >>> state = training.create(params, tx, model.zero_state((2,)))
        >>> train_step = training.make_train_step(loss_fn, tx)
        >>> state, metrics = train_step(state, jnp.ones((2, 7, 3)), jax.random.key(1))
        >>> int(state.step)
        1
    """
    objective = Objective(loss_fn, accumulate, compute_dtype, reset_rate, start)
    run = compiled(plan(objective, tx, clip_norm=clip_norm, ema_decay=ema_decay))

    def train_step(state, batch, key=None):
        state = border.take_leaves("state", state)
        state, report = run(state, border.take_leaves("batch", batch), key)
        return state, report.metrics

    return train_step


def plan(objective: Objective, tx: optax.GradientTransformation, **given: Any) -> Plan:
    """Checks what a step is to do."""
    contract.check_loss_fn(objective.loss_fn)
    contract.check_tx(tx)
    options.check_positive("accumulate", objective.accumulate)
    options.check_probability("reset_rate", objective.reset_rate)
    options.check_floating("compute_dtype", objective.compute_dtype)
    made = Plan(objective, tx, **given)
    options.check_limit("clip_norm", made.clip_norm)
    if made.ema_decay is not None:
        options.check_rate("ema_decay", made.ema_decay)
    return made


def compiled(plan: Plan) -> Callable[..., tuple[TrainState, Report]]:
    """The step as a function of what was checked; it reports.

    Two programs: were it one, gradients would be part of its temporary memory, one
    block that on a CPU the system hands out anew, page by page, at every step.
    """
    differentiated = jax.jit(functools.partial(_differentiated, plan))
    stepped = jax.jit(functools.partial(_stepped, plan), donate_argnums=0)

    def run(state, batch, key=None):
        return stepped(state, differentiated(state, batch, key))

    return run


def _differentiated(plan: Plan, state: TrainState, batch: Any, key: Any) -> Gradient:
    _check_state(plan, state)
    if key is None and state.key is not None:
        key = jax.random.fold_in(state.key, state.step)
    return gradient(plan.objective, state.params, state.carry, batch, key)


def _stepped(
    plan: Plan, state: TrainState, given: Gradient
) -> tuple[TrainState, Report]:
    grads, loss, carry, metrics = given
    wrong = _first_wrong(loss, grads)
    taken = wrong < 0
    if plan.max_skipped is not None and state.skipped_in_row is not None:
        taken &= state.skipped_in_row < plan.max_skipped
    norm = None
    if plan.clip_norm is not None:
        grads, norm = _clip(grads, plan.clip_norm)
    anew = start_of(plan.objective.start, state.params, carry)
    # Chosen entry by entry: a branch would need the clipped gradient as an array.
    moving = ("params", "opt_state", "carry", "ema")
    new = _updated(plan, state, grads)._replace(carry=carry)
    old = state._replace(carry=anew)
    # Of one shape and dtype each, or an error: nothing is broadcast.
    choose = lambda new, old: lax.select(taken, new, old)
    chosen = jax.tree.map(
        choose, *({name: getattr(one, name) for name in moving} for one in (new, old))
    )
    state = _counted(state._replace(**chosen), taken)
    return state, Report(loss, metrics, norm, wrong, state.skipped_in_row)


def _check_state(plan: Plan, state: TrainState) -> None:
    if plan.objective.reset_rate:
        check_start(plan.objective.start, state.params, state.carry)
    if (plan.ema_decay is None) != (state.ema is None):
        raise ValueError(
            "ema_decay: expected one where the state has an average, and none where it "
            f"has none, got {plan.ema_decay} and a state "
            f"{'without' if state.ema is None else 'with'} one. training.create("
            "params, tx, carry, ema=True) makes one with."
        )


def _first_wrong(loss: Value, grads: PyTree) -> Array:
    """-1 where all is finite, else 0 for the loss, n + 1 for leaf n of the gradient."""
    value = [term.total for term in loss] if isinstance(loss, tuple) else loss
    parts = [value, *jax.tree.leaves(grads)]
    # Small enough that sums of finite squares are finite; a sum of numbers is many
    # times faster here than a conjunction of flags.
    finite = [
        jnp.stack([jnp.isfinite(_squares(x, _tiny(x))) for x in jax.tree.leaves(part)])
        for part in parts
    ]
    bad = ~jnp.stack([jnp.all(each) for each in finite])
    return jnp.where(bad.any(), jnp.argmax(bad).astype(jnp.int32), -1)


def _clip(grads: PyTree, limit: float) -> tuple[PyTree, Array]:
    """Gradients with a global norm of at most ``limit``, and what it was.

    From smaller numbers where squares overflow: that of 1e20 is no float32.
    """
    leaves = jax.tree.leaves(grads)
    wide = max((accumulation_dtype(g.dtype) for g in leaves), key=lambda d: d.itemsize)

    def norm_by(factor):
        squares = [_squares(leaf.astype(wide), factor) for leaf in leaves]
        return jnp.sqrt(sum(squares[1:], start=squares[0])) / factor

    plain, tiny = norm_by(1.0), norm_by(_tiny(jnp.zeros((), wide)))
    norm = jnp.where(jnp.isfinite(plain), plain, tiny)
    factor = limit / jnp.maximum(norm, limit)
    clipped = lambda leaf: (leaf.astype(wide) * factor).astype(leaf.dtype)
    return jax.tree.map(clipped, grads), norm


def _squares(leaf: Array, factor: float) -> Array:
    """The sum of the squares of numbers times a factor."""
    wide = leaf.astype(accumulation_dtype(leaf.dtype))
    return jnp.sum(jnp.square(wide * factor))


def _tiny(leaf: Array) -> float:
    """A factor by which the squares of 2^30 finite numbers can be summed."""
    return 0.5 ** (jnp.finfo(accumulation_dtype(leaf.dtype)).maxexp // 2 + 16)


def _updated(plan: Plan, state: TrainState, grads: PyTree) -> TrainState:
    updates, opt_state = plan.tx.update(grads, state.opt_state, state.params)
    if (scale := state.scale) is not None:
        updates = jax.tree.map(lambda u: u * scale.astype(u.dtype), updates)
    params = optax.apply_updates(state.params, updates)
    state = state._replace(params=params, opt_state=opt_state)
    if state.ema is None or plan.ema_decay is None:
        return state
    done = state.step if state.skipped is None else state.step - state.skipped
    done = done.astype(jnp.float32)
    share = 1 - jnp.minimum(plan.ema_decay, (1 + done) / (10 + done))

    def moved(average, new):
        new = new.astype(average.dtype)
        return average + share.astype(average.dtype) * (new - average)

    ema = jax.tree.map(moved, state.ema, params)
    return state._replace(ema=ema)


def _counted(state: TrainState, taken: Array) -> TrainState:
    one = (~taken).astype(jnp.int32)
    counts: dict[str, Any] = {"step": state.step + 1}
    if state.cursor is not None:
        cursor = state.cursor
        counts["cursor"] = cursor._replace(batch=cursor.batch + 1)
    if state.skipped is not None:
        counts["skipped"] = state.skipped + one
    if state.skipped_in_row is not None:
        counts["skipped_in_row"] = (state.skipped_in_row + one) * one
    return state._replace(**counts)
