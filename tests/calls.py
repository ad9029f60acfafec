"""Small calls of everything, which tests change in one argument."""

import jax
import jax.numpy as jnp

import lstm_jax as lj

B, T, I, H = 4, 6, 3, 5
CELL = lj.LSTMCell(I, H)
PARAMS = CELL.init(jax.random.key(0))
XS = jnp.ones((B, T, I))
MODEL = lj.LSTM(I, H, num_layers=2, bidirectional=True)
MODEL_PARAMS = MODEL.init(jax.random.key(0))


def state(h=(B, H), c=(B, H), dtype=jnp.float32):
    return lj.LSTMState(jnp.zeros(h, dtype), jnp.zeros(c, dtype))


def scan(params=PARAMS, xs=XS, state=None, **options):
    return lj.scan(CELL, params, xs, state, **options)


def apply(params=MODEL_PARAMS, xs=XS, state=None, **options):
    return MODEL.apply(params, xs, state, **options)


def layers(count, h=(B, H), c=(B, H), both=True):
    one = state(h, c)
    return (lj.Directions(one, one if both else None),) * count
