"""Two actors of Ray as two processes of one run: python distributed_ray.py."""

import os
import socket

import ray


@ray.remote
class Worker:
    """A process: JAX is first imported in it, once it knows which one it is."""

    def __init__(self, index, count):
        """Keeps the numbers that the library asks for."""
        self.said = {"JAX_PROCESS_ID": str(index), "JAX_NUM_PROCESSES": str(count)}

    def address(self):
        """Where this worker is, and a port that is free there."""
        with socket.socket() as one:
            one.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{one.getsockname()[1]}"

    def train(self, address):
        """Trains on this worker's share of the rows; what all workers end with."""
        os.environ.update(self.said, JAX_COORDINATOR_ADDRESS=address)
        import jax
        import jax.numpy as jnp
        import numpy as np
        import optax
        from jax.sharding import AxisType, NamedSharding, PartitionSpec

        import lstm_jax as lj
        from lstm_jax import data, distributed, training

        joined = distributed.initialize_from_env()
        auto = (AxisType.Auto,)
        mesh = jax.make_mesh((joined.devices,), ("data",), axis_types=auto)
        cut = NamedSharding(mesh, PartitionSpec("data"))
        series = np.random.default_rng(0).standard_normal((64, 7, 3), np.float32)
        mine = {"process": distributed.share(cut)}
        batches = data.shuffled_batches(series, 16, **mine)
        model = lj.LSTM(3, 5)

        def loss_fn(params, carry, xs, key):
            return jnp.mean(model.apply(params, xs)[1] ** 2), (carry, {})

        result = training.fit(
            loss_fn,
            optax.adam(1e-2),
            model.init(jax.random.key(0)),
            lambda epoch: (distributed.global_batch(xs, cut) for xs in batches(epoch)),
            epochs=5,
            show=False,
        )
        seen = float(np.abs(next(iter(batches))).sum())
        params = [np.asarray(leaf) for leaf in jax.tree.leaves(result.state.params)]
        total = [float(leaf.sum()) for leaf in params]
        return joined.processes, joined.devices, seen, result.history[-1]["loss"], total


if __name__ == "__main__":
    ray.init()
    workers = [Worker.remote(index, 2) for index in range(2)]
    address = ray.get(workers[0].address.remote())
    one, other = ray.get([worker.train.remote(address) for worker in workers])
    print(one, other, sep="\n")
    assert one[0] == 2 and one[2] != other[2] and one[3:] == other[3:]
