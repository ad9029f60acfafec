"""Where JAX lowers the recurrence: which implementation, for which platform."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import core
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import AbstractMesh

from lstm_jax.meshes import gathered
from lstm_jax.recurrence import plain, xla
from lstm_jax.recurrence.contract import Implementation, Target, input_axes
from lstm_jax.recurrence.levels import mapped

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_REFERENCE = xla.Reference()


def register(primitive: Primitive, kind: str) -> None:
    """Lowers a primitive by the method ``kind`` of the implementation that runs."""
    for platform in (None, *_PLATFORMS):
        rule = functools.partial(_lower, kind, platform)
        mlir.register_lowering(primitive, rule, platform=platform)


def _lower(kind, platform, context, *args, call, levels, **params):
    target = _target(platform, context.module_context)
    chosen = choose(call.candidates, target)
    empty = any(0 in aval.shape for aval in context.avals_in[: call.leaves])
    # Weights that are mapped over and kernels: one by one, on every device the same.
    plainly = levels and target.partitioned and chosen.native

    def one(*args):
        if empty or plainly and kind == "run":
            return getattr(_REFERENCE, kind)(call, *params.values(), args, target)
        result = None
        if not plainly:
            result = getattr(chosen, kind)(call, *params.values(), args, target)
        if result is None:
            anew = plain.tangent if kind == "tangent" else plain.pullback
            result = anew(*args, call=call, **params)
        return result

    # Convolutions that are mapped over together are one in groups, and for that XLA
    # gathers all rows: openxla/xla#47945.
    gathers = target.partitioned and call.cell.convolves
    one_by_one = chosen.native and not plainly or gathers
    function = mapped(levels, one, one_by_one=one_by_one)
    module = context.module_context
    if target.partitioned and not (levels or target.partly_manual):
        function = _with_whole_weights(
            function, input_axes(call), params.get("which", ()), kind
        )
    if chosen.native and target.partitioned:
        # custom_partitioning wants devices and looks at their number alone. JAX says
        # which they are only where a whole program keeps to one mesh.
        devices = tuple(jax.devices(target.platform)[: target.devices])
        axes = mlir.ShardingContext(target.devices, devices)
        module = module.replace(axis_context=axes)
    # Types say here what each device holds, and nothing of meshes.
    avals = [core.ShapedArray(aval.shape, aval.dtype) for aval in context.avals_in]
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
        context = context.replace(avals_in=avals, module_context=module)
        return mlir.lower_fun(function)(context, *args)


def _with_whole_weights(
    function: Callable, axes: Sequence[int | None], which: Sequence[bool], kind: str
) -> Callable:
    """A function that gathers weights where it begins, and not at each step.

    And their gradients where it ends: what they are cut into would be asked of the
    states of every step else.

    Args:
        function: an implementation's method, of arrays.
        axes: for each input where its rows are; None for a weight.
        which: of which inputs there is a gradient.
        kind: which method it is.
    """

    def whole(arrays, axes):
        return [
            gathered(array) if axis is None else array
            for array, axis in zip(arrays, axes, strict=True)
        ]

    def gathering(*args):
        inputs = whole(args[: len(axes)], axes)
        results = function(*inputs, *args[len(axes) :])
        if kind != "pullback":
            return results
        wanted = [axis for axis, want in zip(axes, which, strict=True) if want]
        return whole(results, wanted)

    return gathering


def _target(platform: str | None, module: Any) -> Target:
    """What a module is lowered for."""
    if platform is None:
        platform = module.platforms[0]
    axes = module.axis_context
    devices, partly_manual = 1, False
    if isinstance(axes, mlir.ShardingContext):
        devices = axes.num_devices
    elif isinstance(axes, mlir.SPMDAxisContext):
        partly_manual = set(axes.manual_axes) != set(axes.mesh.axis_names)
        devices = axes.mesh.size if partly_manual else 1
    exporting = bool(module.lowering_parameters.for_export)
    return Target(platform, devices, exporting, partly_manual)


def choose(candidates: tuple[Implementation, ...], target: Target) -> Implementation:
    """The first candidate that can be lowered for a target.

    Raises:
        NotImplementedError: if an implementation was named, and it can't.
    """
    reasons = []
    for candidate in candidates:
        reason = cannot(candidate, target)
        if reason is None:
            return candidate
        reasons.append(f'"{candidate.name}" {reason}')
    raise NotImplementedError(
        f"implementation: {'; '.join(reasons)}. Leave it out for the fastest that can."
    )


def cannot(implementation: Implementation, target: Target) -> str | None:
    """Why an implementation can't be lowered for a target; None if it can."""
    platforms = implementation.platforms
    if platforms is not None and target.platform not in platforms:
        return f"runs on {' and '.join(platforms)}, not on {target.platform}"
    return implementation.refuses(target)
