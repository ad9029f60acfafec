"""A readout with ragged targets, its loss by the plain formula and by ours."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_jax.training import linear_cross_entropy
from tests.common import normal

H, V = 5, 11


SHAPE = (3, 7)


MOVING = (0, 1, 2, 3)


def case(shape=SHAPE, classes=V, dtype="float32", seed=0):
    """ys, kernel, bias, weights and targets."""
    targets = np.random.default_rng(seed).integers(0, classes, shape)
    return (
        normal([seed, 1], (*shape, H), dtype),
        normal([seed, 2], (H, classes), dtype),
        normal([seed, 3], (classes,), dtype),
        jnp.abs(normal([seed, 4], shape, dtype)),
        jnp.asarray(targets, jnp.int32),
    )


def valid_of(shape, names, seed=0):
    """Which tokens count, and how that is said."""
    rng = np.random.default_rng([seed, 9])
    valid, options = np.ones(shape, bool), {}
    if "mask" in names:
        options["mask"] = rng.random(shape) < 0.6
        valid &= options["mask"]
    if "lengths" in names:
        options["lengths"] = rng.integers(0, shape[-1] + 1, shape[:-1])
        valid &= np.arange(shape[-1]) < options["lengths"][..., None]
    return valid, options


def plain(ys, kernel, bias, weights, targets, valid=None):
    """The same without chunks, total and weight, in JAX's own operations."""
    logits = jnp.einsum("...h,hv->...v", ys, kernel)
    logits += bias.reshape((1,) * (logits.ndim - 1) + (-1,))
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
    weights = weights if valid is None else jnp.where(valid, weights, 0)
    return jnp.sum(weights * losses[..., 0]), jnp.sum(weights)


def mean(*args, **options):
    total, weight = plain(*args, **options)
    return total / jnp.maximum(weight, 1e-9)


def ours(ys, kernel, bias, weights, targets, **options):
    return linear_cross_entropy(ys, kernel, bias, targets, weights=weights, **options)


def by_hand(ys, kernel, bias, weights, targets, valid):
    """The mean and its gradients, by a loop in float64 over the tokens that count."""
    ys, kernel, bias, weights = (
        np.asarray(a, np.float64) for a in (ys, kernel, bias, weights)
    )
    total, whole = 0.0, weights[valid].sum() or 1.0
    grads = [np.zeros_like(a) for a in (ys, kernel, bias)]
    for place in map(tuple, np.argwhere(valid)):
        logits = ys[place] @ kernel + bias
        p = np.exp(logits - logits.max())
        p /= p.sum()
        total -= weights[place] * np.log(p[targets[place]])
        p[targets[place]] -= 1
        p *= weights[place] / whole
        grads[0][place] = kernel @ p
        grads[1] += np.outer(ys[place], p)
        grads[2] += p
    return total / whole, tuple(grads)


def place(mesh, args, *axes):
    put = lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec))
    rows = (True, False, False, True, True)
    return [
        put(arg, P(*axes) if has else P()) for arg, has in zip(args, rows, strict=True)
    ]
