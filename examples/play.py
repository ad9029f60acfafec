"""Learns to remember, by reward alone, in a T-maze. Ctrl-C saves, --resume goes on.

python examples/play.py               # half a minute; 1.00 of the turns are right
python examples/play.py --memoryless  # where the LSTM starts anew at every step: 0.50

A cue at the start says which way is right at the end of a corridor (Bakker, 2002). The
mazes run inside the compiled step of training, an actor-critic.
"""

import dataclasses
import pathlib
import sys
from collections import namedtuple
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import lstm_jax as lj
from lstm_jax import training

try:
    import tyro
except ImportError as error:
    sys.exit(f'play: {error.name} is missing: pip install "lstm_jax[examples]"')
MAY_CHANGE = {"out", "resume", "steps"}
LIMITS = {"seed": (0, 2**31 - 1), "steps": (1, 10**7), "discount": (0, 1)}
FORWARD, LEFT, RIGHT = range(3)  # A cue is the way that is right.
Maze = namedtuple("Maze", "place cue time")
Moment = namedtuple("Moment", "seen reset action reward cut over next_value")


@dataclasses.dataclass(frozen=True)
class Config:
    out: pathlib.Path = pathlib.Path("out/play")  # the folder of the run
    resume: bool = False  # go on with the run in --out
    steps: int = 1000  # updates, each after a rollout
    mazes: int = 64  # that run side by side
    rollout: int = 64  # steps of each maze from one update to the next
    corridor: int = 20  # steps from the cue to the turn
    limit: int = 100  # steps after which an episode is cut off
    hidden_size: int = 32  # units of the LSTM
    memoryless: bool = False  # the LSTM starts anew at every step
    learning_rate: float = 5e-3  # of Adam; falls along a line to 0
    discount: float = 0.98  # of a reward, for each step until it comes
    entropy: float = 0.01  # weight of the policy's entropy
    seed: int = 0  # of the weights, the mazes and the actions


def begin(key, mazes):
    zeros = jnp.zeros(mazes, jnp.int32)
    return Maze(zeros, jax.random.randint(key, (mazes,), LEFT, RIGHT + 1), zeros)


def observe(maze, config):
    seen = [(maze.time == 0) & (maze.cue == way) for way in (LEFT, RIGHT)]
    return jnp.stack([*seen, maze.place == config.corridor], -1).astype(jnp.float32)


def move(maze, action, config):
    """The next maze, the reward, and whether the episode was cut off, or is over."""
    turned = (maze.place == config.corridor) & (action != FORWARD)
    cut = ~turned & (maze.time + 1 == config.limit)
    place = jnp.minimum(maze.place + (action == FORWARD), config.corridor)
    reward = (turned & (action == maze.cue)).astype(jnp.float32)
    return Maze(place, maze.cue, maze.time + 1), reward, cut, turned | cut


class Model(namedtuple("Model", "lstm readout config")):
    def init(self, key):
        keys, ys = jax.random.split(key), jnp.zeros(self.lstm.output_size)
        readout = self.readout.init(keys[1], ys)
        return {"lstm": self.lstm.init(keys[0]), "readout": readout}

    def act(self, params, carry, key):
        (maze, memory), keys, config = carry, jax.random.split(key), self.config
        seen, reset = observe(maze, config), (maze.time == 0) | config.memoryless
        memory, y = self.lstm.step(params["lstm"], memory, seen, reset=reset)
        logits = self.readout.apply(params["readout"], y)[:, :3]
        action = jax.random.categorical(keys[0], logits)
        after, reward, cut, over = move(maze, action, config)
        # Of where the action led: if it was cut off there, no later step has its value.
        ahead, anew = observe(after, config), jnp.full_like(over, config.memoryless)
        _, y = self.lstm.step(params["lstm"], memory, ahead, reset=anew)
        value = self.readout.apply(params["readout"], y)[:, 3]
        maze = jax.tree.map(partial(jnp.where, over), begin(keys[1], len(over)), after)
        return (maze, memory), Moment(seen, reset, action, reward, cut, over, value)

    def loss(self, params, carry, batch, key):
        memory, config = carry[1], self.config
        act = partial(self.act, jax.lax.stop_gradient(params))
        carry, past = jax.lax.scan(act, carry, jax.random.split(key, config.rollout))
        given = {"reset": past.reset, "time_major": True}
        _, ys = self.lstm.apply(params["lstm"], past.seen, memory, **given)
        outputs = self.readout.apply(params["readout"], ys)
        logs, values = jax.nn.log_softmax(outputs[..., :3]), outputs[..., 3]
        returned = returns(past, config.discount)
        gains = returned - jax.lax.stop_gradient(values)
        chosen = jnp.take_along_axis(logs, past.action[..., None], -1)[..., 0]
        policy = -(chosen * (gains - gains.mean()) / (gains.std() + 1e-6)).mean()
        critic = jnp.square(returned - values).mean()
        entropy = -(jnp.exp(logs) * logs).sum(-1).mean()
        loss = policy + 0.5 * critic - config.entropy * entropy
        right = training.Weighted(past.reward.sum(), past.over.sum())
        return loss, (carry, {"right": right, "entropy": entropy})


def returns(past, discount):
    """Discounted rewards to come, or the value where a cut or the end comes first."""
    rewards = past.reward + discount * past.cut * past.next_value
    kept = discount * ~past.over
    add = lambda later, now: (now[0] + now[1] * later,) * 2
    return jax.lax.scan(add, past.next_value[-1], (rewards, kept), reverse=True)[1]


def train(config):
    for name, n in vars(config).items():
        low, high = LIMITS.get(name, (0, 100) if type(n) is float else (1, 10_000))
        if type(n) in (int, float) and not low <= n <= high:
            raise ValueError(f"--{name}: expected {low} to {high}, got {n}.")
    # Of each step the logits of three actions, and the value.
    model = Model(lj.LSTM(3, config.hidden_size), nn.Dense(4), config)
    keys = jax.random.split(jax.random.key(config.seed), 5)
    begun = lambda key, rows: (begin(key, rows), model.lstm.zero_state((rows,)))
    result = training.fit(
        model.loss,
        optax.adam(optax.linear_schedule(config.learning_rate, 0.0, config.steps)),
        model.init(keys[0]),
        [None] * config.steps,
        carry=begun(keys[1], config.mazes),
        continues=True,
        key=keys[2],
        **{name: getattr(config, name) for name in MAY_CHANGE},
        settings={k: str(v) for k, v in vars(config).items() if k not in MAY_CHANGE},
    )
    params, acting = result.state.params, jax.random.split(keys[3], config.limit)
    training.save_weights(config.out / "weights.safetensors", params)
    _, past = jax.lax.scan(partial(model.act, params), begun(keys[4], 1000), acting)
    right = past.reward[past.over.argmax(0), jnp.arange(1000)].mean()  # at first ends
    print(f"right turns: {right:.4f} of 1000 fresh episodes")
    return result.exit_status


if __name__ == "__main__":
    try:
        sys.exit(train(tyro.cli(Config, description=__doc__)))
    except (ValueError, OSError) as error:
        sys.exit(f"play: {error}")
