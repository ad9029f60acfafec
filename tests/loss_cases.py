"""Losses, metrics and penalties, and what to call them on."""

import functools

import jax.numpy as jnp
import numpy as np

from lstm_jax.training import (
    absolute_error,
    accuracy,
    activation_penalty,
    binary_cross_entropy,
    bits,
    cross_entropy,
    ctc_loss,
    huber_error,
    l1_penalty,
    l2_penalty,
    linear_cross_entropy,
    perplexity,
    squared_error,
    temporal_activation_penalty,
)
from tests.common import normal

SHAPE, V = (3, 4), 7


def _huber(error, delta):
    size = abs(error)
    return 0.5 * size**2 if size <= delta else delta * (size - 0.5 * delta)


def _binary(logit, target):
    yes = 1 / (1 + np.exp(-logit))
    return -target * np.log(yes) - (1 - target) * np.log(1 - yes)


ELEMENTWISE = {
    "squared": (squared_error, lambda p, t: (p - t) ** 2, {}),
    "absolute": (absolute_error, lambda p, t: abs(p - t), {}),
    "huber": (huber_error, lambda p, t: _huber(p - t, 1.0), {}),
    "huber of 0.3": (huber_error, lambda p, t: _huber(p - t, 0.3), {"delta": 0.3}),
    "binary": (binary_cross_entropy, _binary, {}),
}


# Eight rows of four steps, and for each argument whether it has a row for each.
ROWS = (8, 4)


WIDE, NARROW = normal(0, (*ROWS, V)), normal(1, (*ROWS, 3))


CLASSES = jnp.asarray(np.random.default_rng(2).integers(0, V, ROWS), jnp.int32)


SHARES = jnp.asarray(np.random.default_rng(3).random((*ROWS, V)), jnp.float32)


KERNEL, BIAS = normal(4, (3, V)), normal(5, (V,))


CUT_LAYER = ((NARROW, True), (KERNEL, False), (BIAS, False), (CLASSES, True))


CUT_TOKENS = ((WIDE, True), (CLASSES, True))


BY_LENGTHS, BY_MASK, BY_NOTHING = ("mask", "lengths"), ("mask",), ()


def _without_bias(ys, kernel, targets, **options):
    return linear_cross_entropy(ys, kernel, None, targets, **options)


def _by_weights(*args, **options):
    *args, weights = args
    return linear_cross_entropy(*args, weights=weights, chunk_size=3, **options)


def _of(measure):
    return lambda *args, **options: measure(
        cross_entropy(*args, **options, weighted=True)
    )


CUT = {
    **{
        name: (
            functools.partial(loss, **options),
            ((WIDE, True), (SHARES, True)),
            BY_LENGTHS,
        )
        for name, (loss, _, options) in ELEMENTWISE.items()
    },
    "tokens": (cross_entropy, CUT_TOKENS, BY_LENGTHS),
    "one class": (
        cross_entropy,
        ((WIDE[..., :1], True), (CLASSES * 0, True)),
        BY_LENGTHS,
    ),
    "whole targets": (cross_entropy, ((WIDE, True), (CLASSES, False)), BY_LENGTHS),
    "linear": (linear_cross_entropy, CUT_LAYER, BY_LENGTHS),
    "linear without a bias": (_without_bias, (*CUT_LAYER[:2], CUT_TOKENS[1]), BY_MASK),
    "linear of weights": (
        _by_weights,
        (*CUT_LAYER, (SHARES[..., 0], True)),
        BY_LENGTHS,
    ),
    "accuracy": (accuracy, CUT_TOKENS, BY_LENGTHS),
    "perplexity": (_of(perplexity), CUT_TOKENS, BY_LENGTHS),
    "bits": (_of(bits), CUT_TOKENS, BY_LENGTHS),
    "perplexities": (
        lambda losses: perplexity(losses).sum(),
        ((SHARES, True),),
        BY_NOTHING,
    ),
    "many bits": (lambda losses: bits(losses).sum(), ((SHARES, True),), BY_NOTHING),
    "CTC": (
        ctc_loss,
        ((WIDE, True), (CLASSES[:, :2] % (V - 1) + 1, True)),
        ("lengths", "label_lengths"),
    ),
    "AR": (activation_penalty, ((NARROW, True),), BY_MASK),
    "TAR": (temporal_activation_penalty, ((NARROW, True),), BY_MASK),
    "AR of one": (activation_penalty, ((NARROW[..., :1], True),), BY_MASK),
    "L1": (
        lambda *params: l1_penalty(params),
        ((NARROW, True), (KERNEL, False)),
        BY_NOTHING,
    ),
    "L2": (
        lambda *params: l2_penalty(params),
        ((NARROW, True), (KERNEL, False)),
        BY_NOTHING,
    ),
}
