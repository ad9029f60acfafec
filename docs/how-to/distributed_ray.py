"""Two workers of Ray's JaxTrainer as one run: python distributed_ray.py."""

import os

from ray.train import ScalingConfig
from ray.train.v2.jax import JaxTrainer


def worker(config):
    """Trains on this worker's share of the rows; what all workers ended with."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.experimental.multihost_utils import process_allgather
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    import lstm_jax as lj
    from lstm_jax import data, distributed, training

    joined = distributed.initialize_from_env()
    auto = (AxisType.Auto,)
    mesh = jax.make_mesh((joined.devices,), ("data",), axis_types=auto)
    cut = NamedSharding(mesh, PartitionSpec("data"))
    series = np.random.default_rng(0).standard_normal((64, 7, 3), np.float32)
    batches = data.shuffled_batches(series, 16, process=distributed.share(cut))
    model = lj.LSTM(3, 5)

    def loss_fn(params, carry, xs, key):
        return jnp.mean(model.apply(params, xs)[1] ** 2), (carry, {})

    result = training.fit(
        loss_fn,
        optax.adam(config["learning_rate"]),
        model.init(jax.random.key(0)),
        lambda epoch: (distributed.global_batch(xs, cut) for xs in batches(epoch)),
        epochs=5,
        show=False,
    )
    seen = np.abs(next(iter(batches))).sum()
    total = sum(abs(np.asarray(x)).sum() for x in jax.tree.leaves(result.state.params))
    every = process_allgather(np.array([seen, total]))
    return {
        "processes": joined.processes,
        "seen": every[:, 0].tolist(),
        "parameters": every[:, 1].tolist(),
        "loss": float(result.history[-1]["loss"]),
    }


if __name__ == "__main__":
    # Ray hides GPUs of machines that have some from workers that ask for none.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    trainer = JaxTrainer(
        worker,
        train_loop_config={"learning_rate": 1e-2},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
    )
    found = trainer.fit().return_value
    print(found)
    assert found["processes"] == 2
    assert found["seen"][0] != found["seen"][1]
    assert found["parameters"][0] == found["parameters"][1]
