"""The share of a processor's floating-point rate that a run reaches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.checks import options
from lstm_jax.training.steps.step import Plan

# Forward two for each weight and token, a product and a sum; backward twice that.
_FLOPS_PER_WEIGHT = 6


def rate_for(flops: Any, plan: Plan) -> Callable[[float], float] | None:
    """From tokens a second to the share of the best product; None if not known.

    Args:
        flops: of one token, in a whole step; or a description with an ``init``.
        plan: of the step, for the dtype that it computes in.
    """
    if flops is None:
        return None
    per_token = flops_of(flops)
    best = best_product(plan.objective.compute_dtype or jnp.float32)
    return lambda tokens_per_second: tokens_per_second * per_token / best


def flops_of(model: Any) -> float:
    """Operations of one token in a whole step: of the products with weights alone."""
    if not hasattr(model, "init"):
        options.check_limit("flops_per_token", model)
        return float(model)
    params = jax.eval_shape(model.init, jax.random.key(0))
    sizes = [math.prod(p.shape) for p in jax.tree.leaves(params) if len(p.shape) > 1]
    return float(_FLOPS_PER_WEIGHT * sum(sizes))


def best_product(dtype: Any) -> float:
    """Operations a second of a product of two large matrices, timed now."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    ones = jnp.ones((size, size), dtype)
    product = jax.jit(lambda one, other: one @ other)
    product(ones, ones).block_until_ready()
    times = []
    for _ in range(5):
        before = time.perf_counter()
        product(ones, ones).block_until_ready()
        times.append(time.perf_counter() - before)
    return 2 * size**3 / min(times)
