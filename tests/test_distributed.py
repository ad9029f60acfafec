"""Real processes over the loopback address, joined by hand-set variables."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

# Seconds after which a process that says nothing is lost, in these tests.
LIMIT = 2
# All processes of a test are gone so long after the launch, whatever happens.
LONGEST = 180


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Launched:
    """Processes that run one program; told apart by variables alone."""

    def __init__(
        self, program, count=2, devices=2, only=None, folder="", **environment
    ):
        port = free_port()
        self.processes = {
            n: subprocess.Popen(
                [sys.executable, "-u", "-c", textwrap.dedent(program), str(folder)],
                env=os.environ
                | {
                    "JAX_NUM_PROCESSES": str(count),
                    "JAX_PROCESS_ID": str(n),
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_PLATFORMS": "cpu",
                    "PYTHONPATH": os.getcwd(),
                    "XLA_FLAGS": "--xla_backend_optimization_level=0 "
                    f"--xla_force_host_platform_device_count={devices}",
                    # A proxy that no one is behind.
                    "https_proxy": "http://127.0.0.1:9",
                    "http_proxy": "http://127.0.0.1:9",
                }
                | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for n in (range(count) if only is None else only)
        }

    def until(self, word):
        """Waits until each process has written a line."""
        for process in self.processes.values():
            # Gloo writes lines of its own.
            if word not in (line.strip() for line in process.stdout):
                raise AssertionError(process.stderr.read())

    def signal(self, victim, number):
        self.processes[victim].send_signal(number)
        return time.monotonic()

    def ended(self, but=None):
        """Status, stdout and stderr of all but one, which is killed."""
        try:
            return {
                n: (process.returncode, *said)
                for n, process in self.processes.items()
                if n != but
                for said in [process.communicate(timeout=LONGEST)]
            }
        finally:
            for process in self.processes.values():
                process.kill()
                process.communicate()


# Each step is a sum over the devices of all processes.
STEPS = f"""
    import sys, time
    import jax, numpy as np, lstm_jax as lj
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    joined = lj.distributed.initialize_from_env(
        initialization_timeout=30, heartbeat_timeout={LIMIT}
    )
    mesh = jax.make_mesh((joined.devices,), ("data",), axis_types=(AxisType.Auto,))
    cut = NamedSharding(mesh, P("data"))
    one = lambda index: np.ones(1, np.float32)
    step = jax.jit(lambda xs: xs.sum())
    def run():
        return float(step(jax.make_array_from_callback((joined.devices,), cut, one)))
    assert run() == 4
"""


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_others_end_where_one_dies_or_is_stopped(victim, number):
    loop = 'print("ready")\nwhile True:\n    run()\n'
    launched = Launched(textwrap.dedent(STEPS) + loop)
    launched.until("ready")
    before = launched.signal(victim, number)
    status, _, said = launched.ended(but=victim)[1 - victim]
    assert time.monotonic() - before < 3 * LIMIT
    assert status not in (0, None)
    name = f"lstm_jax: process {1 - victim}: process {victim} ("
    assert name in said, said
    words = "is gone" if number == signal.SIGKILL else "has said nothing for"
    assert words in said, said


def test_the_others_end_where_one_fails():
    fail = (
        'if joined.process:\n    raise ValueError("of mine.")\nwhile True:\n    run()\n'
    )
    ended = Launched(textwrap.dedent(STEPS) + fail).ended()
    assert ended[0][0] == ended[1][0] == 1
    assert "ValueError: of mine." in ended[1][2]
    assert "lstm_jax: process 0: process 1 (" in ended[0][2]
    assert "failed: ValueError: of mine.\n" in ended[0][2]


COME = """
    import lstm_jax as lj
    lj.distributed.initialize_from_env(initialization_timeout=1)
"""


@pytest.mark.parametrize(
    "n, words",
    [
        (0, ["TimeoutError: process 1 of 2 did not come within 1 s", "COORDINATOR"]),
        (
            1,
            [
                "TimeoutError: process 1 of 2: no process 0 at localhost, port",
                "refused",
            ],
        ),
    ],
)
def test_one_that_never_comes_is_named(n, words):
    status, _, said = Launched(COME, only=[n]).ended()[n]
    assert status == 1
    assert all(word in said for word in words), said
    assert "JAX_COORDINATOR_ADDRESS" in said


def test_a_name_that_is_not_known_and_a_port_that_is_taken_are_said():
    address = {"JAX_COORDINATOR_ADDRESS": "nowhere.invalid:9"}
    there = Launched(COME, only=[1], **address)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{taken.getsockname()[1]}"}
        status, _, said = Launched(COME, only=[0], **port).ended()[0]
    assert status == 1 and "Address already in use" in said
    assert "JAX_COORDINATOR_ADDRESS" in said and "another job's" in said
    status, _, said = there.ended()[1]
    assert status == 1 and "the name nowhere.invalid is not known" in said


JOINED = """
    import json, jax, lstm_jax as lj
    joined = lj.distributed.initialize_from_env(initialization_timeout=30)
    assert lj.distributed.initialize_from_env() is joined
    assert joined.processes == jax.process_count() == 2, joined
    print(json.dumps(joined))
"""
LAUNCHERS = {
    "SLURM": {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "{n}",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "JAX_COORDINATOR_PORT": "{port}",
    },
    "Open MPI 5": {
        "PRTE_LAUNCHED": "1",
        "PMIX_NAMESPACE": "prterun-localhost-77@1",
        "PMIX_RANK": "{n}",
        "OMPI_COMM_WORLD_SIZE": "2",
        "JAX_COORDINATOR_PORT": "{port}",
    },
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_of_two_ends_with_two(launcher):
    port, names = free_port(), ("NUM_PROCESSES", "PROCESS_ID", "COORDINATOR_ADDRESS")
    blank = {f"JAX_{name}": "" for name in names}
    said = [
        {name: value.format(n=n, port=port) for name, value in one.items()}
        for one in [LAUNCHERS[launcher]]
        for n in range(2)
    ]
    both = [Launched(JOINED, only=[n], **(blank | said[n])) for n in range(2)]
    for n, one in enumerate(both):
        status, out, words = one.ended()[n]
        assert status == 0, words
        assert json.loads(out) == [launcher, n, 2, 2, 4]
        line = f"lstm_jax: {launcher}: process {n} of 2, 2 of 4 devices (cpu).\n"
        assert words.count(line) == 1


BATCHES = """
    import sys, time, warnings
    import jax, jax.numpy as jnp, numpy as np, lstm_jax as lj
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
    from lstm_jax import data, distributed, training
    joined = distributed.initialize_from_env(
        initialization_timeout=30, heartbeat_timeout=20
    )
    n, named = joined.process, {}
    def refused(name, function):
        try:
            function()
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}")
        else:
            print(f"{name}: nothing was raised")

    # Rows over both processes; and over the devices of one, the model over processes.
    auto = (AxisType.Auto,)
    data_mesh = jax.make_mesh((4,), ("data",), axis_types=auto)
    cut = NamedSharding(data_mesh, P("data"))
    both = Mesh(np.reshape(jax.devices(), (2, 2)), ("model", "data"))
    alike = NamedSharding(both, P("data"))
    assert distributed.share(cut) == (n, 2) and distributed.share(alike) == (0, 1)
    assert distributed.share(NamedSharding(both, P(("model", "data")))) == (n, 2)
    assert distributed.share(NamedSharding(both, P(None, "model")), axis=1) == (n, 2)

    # The plan of one process, of which each brings its share.
    sequences = [np.full((k, 3), k, np.float32) for k in (7, 12, 3, 9, 1, 4, 6)]
    def batches(sharding):
        mine = distributed.share(sharding)
        given = dict(batch_size=4, buckets=2, index=True)
        return data.bucket_batches(sequences, process=mine, **given)
    for sharding in (cut, alike):
        whole = data.bucket_batches(sequences, batch_size=4, buckets=2, index=True)
        for expected, batch in zip(whole(0), batches(sharding)(0), strict=True):
            made = distributed.global_batch(batch, sharding)
            for one, other in zip(made, expected, strict=True):
                assert one.shape == other.shape and one.sharding.spec == P("data")
                for shard in one.addressable_shards:
                    np.testing.assert_array_equal(shard.data, other[shard.index])

    # What is said to examples of other processes, in the input's order.
    for sharding in (cut, alike):
        made = [distributed.global_batch(b, sharding) for b in batches(sharding)(0)]
        places = dict(lengths=lambda batch: batch[1], index=lambda batch: batch[2])
        said = training.predict(lambda _, batch: 2 * batch[0], {}, made, **places)
        for one, other in zip(said, sequences, strict=True):
            np.testing.assert_array_equal(one, 2 * other)

    # Time first, a number, and one sharding for each part.
    rows = np.arange(4, dtype=np.float32) + 4 * n
    late = {"xs": rows[None] + np.zeros((5, 1), np.float32), "labels": [rows, 3]}
    shardings = {"xs": NamedSharding(data_mesh, P(None, "data")), "labels": cut}
    made = distributed.global_batch(late, shardings)
    assert made["xs"].shape == (5, 8) and made["labels"][0].shape == (8,)
    assert made["labels"][1].shape == ()
    assert float(jax.jit(lambda a: a["xs"].sum())(made)) == 5 * 28

    # A checkpoint of parts that no process has whole; the first alone has the folder.
    odd = np.array([[-0.0, np.nan], [1, 2], [3, 4], [5, np.inf]], np.float32)
    state = {"cut": distributed.global_batch(odd[2 * n :][:2], cut), "all": odd, "n": 3}
    with training.Checkpoints(f"{sys.argv[1]}/{n}") as checkpoints:
        checkpoints.save(1, state, {"loss": float("nan")})
        step, restored, record = checkpoints.restore(state)
    assert step == 1 and restored["n"] == 3 and record["loss"] != record["loss"]
    assert restored["cut"].sharding == cut
    for shard in restored["cut"].addressable_shards:
        assert np.asarray(shard.data).tobytes() == odd[shard.index].tobytes()
    assert restored["all"].tobytes() == odd.tobytes()

    put = distributed.global_batch
    ones = np.ones((4, 7), np.float32)
    refused("longer", lambda: put(np.ones((4, 7 + 5 * n), np.float32), cut))
    refused("rows", lambda: put(np.ones((4 + 2 * n, 7), np.float32), cut))
    refused("dtype", lambda: put(np.ones((4, 7), "f4" if n else "i4"), cut))
    refused("structure", lambda: put({"a": ones} if n else [ones], cut))
    refused("odd", lambda: put(np.ones((4 - n, 7), np.float32), cut))
    refused("replicas", lambda: put(ones + n, alike))
    refused("number", lambda: put([ones * (n + 1), n], cut))
    refused("global", lambda: put(made["xs"], shardings["xs"]))
    refused("mesh", lambda: put(ones, data_mesh))
    alone = Mesh(np.array(jax.local_devices()), ("data",))
    refused("alone", lambda: put(ones, NamedSharding(alone, P("data"))))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        put({"xs": ones, "lengths": np.full(4, 7)}, cut)
    assert "got the same from all of them" in str(said[0].message)
    # One has a batch more than the other.
    distributed.watching.own.limit = 1 if n else 600
    refused("more", lambda: put(ones, cut)) if n else time.sleep(5)
    print("done")
"""


def test_batches_and_checkpoints_of_two_processes(tmp_path):
    ended = Launched(BATCHES, folder=tmp_path).ended()
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    for status, out, said in ended.values():
        assert status == 0 and "done" in out, out + said
    lines = dict(
        line.split(": ", 1) for line in ended[0][1].splitlines() if "Error: " in line
    )
    for name, words in {
        "longer": "got float32 [4, 7] on process 0, float32 [4, 12] on process 1",
        "rows": "got float32 [4, 7] on process 0, float32 [6, 7] on process 1",
        "dtype": "got int32 [4, 7] on process 0, float32 [4, 7] on process 1",
        "structure": "expected one structure on all processes",
        "odd": "process 1: batch: expected a size of axis 0 that 2 divides",
        "replicas": "expected the same rows on processes 0 and 1",
        "number": "batch[1]: expected the same rows on processes 0 and 1",
        "global": "got an array of all processes",
        "mesh": "expected a jax.sharding.NamedSharding",
        "alone": "got none of process",
    }.items():
        assert words in lines[name], lines[name]
        assert words.replace("process 1: ", "") in ended[1][1]
    assert (
        "process 0 (" in ended[1][1] and "did not come to it within 1 s" in ended[1][1]
    )


FITS = """
    import time
    import jax, jax.numpy as jnp, numpy as np, optax, lstm_jax as lj
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from lstm_jax import distributed, training
    n = distributed.initialize_from_env(
        initialization_timeout=30, heartbeat_timeout=20, step_timeout=3
    ).process
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    cut = NamedSharding(mesh, P("data"))
    rows = np.ones((4, 7, 3), np.float32) + n
    model = lj.LSTM(3, 5)
    params = lambda seed: model.init(jax.random.key(seed))
    def loss_fn(params, carry, xs, key):
        return jnp.mean(model.apply(params, xs)[1] ** 2), (carry, {})
    def fit(params, batches, **given):
        given = {"steps": 9, "log_every": 1} | given
        return training.fit(loss_fn, optax.sgd(0.1), params, batches, **given)
    def refused(name, function):
        try:
            function()
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}")
    whole = [distributed.global_batch(rows, cut)]
    refused("alone", lambda: fit(params(0), [rows]))
    refused("seeds", lambda: fit(params(n), whole))
    refused("valid", lambda: fit(params(0), whole, valid=[rows]))
    more = lambda epoch=0: (distributed.global_batch(rows, cut) for _ in range(2 + n))
    refused("more", lambda: fit(params(0), more))
    def error(params, carry, xs, key):
        ys = model.apply(params, xs)[1]
        return training.squared_error(ys, 0 * ys, weighted=True), (carry, {})
    refused("evaluate", lambda: training.evaluate(error, params(0), more))
    output = lambda params, xs: model.apply(params, xs)[1]
    refused("predict", lambda: training.predict(output, params(0), more()))
    def stuck(state, row):
        if n and row["step"] == 3:
            time.sleep(60)
    fit(params(0), whole, hooks=[stuck])
"""


def test_what_fit_refuses_of_two_processes_and_one_that_is_stuck():
    ended = Launched(FITS).ended()
    for n, (status, out, said) in ended.items():
        assert status == 1, said
        for words in (
            "alone: ValueError: batches: expected an array of all 2 processes",
            "seeds: ValueError: state: expected the same numbers on all processes",
            "valid: ValueError: valid: expected an array of all 2 processes",
            "more: ValueError: batches: 2 batches are all that process 0 has",
            "evaluate: ValueError: batches: 2 batches are all that process 0 has",
            "predict: ValueError: batches: 2 batches are all that process 0 has",
        ):
            assert words in out, out + said
        assert f"lstm_jax: process {n}: step 4: waited" in said, said
        assert "for process 1 (" in said, said


EXAMPLE = """
    import functools, jax, os, runpy, signal, sys
    from lstm_jax import training
    def told(state, row):
        if {told} and jax.process_index() == 1 and row["step"] == 8:
            os.kill(os.getpid(), signal.SIGTERM)
    training.fit = functools.partial(training.fit, hooks=[told])
    sys.argv = ["distributed", *{args!r}]
    runpy.run_path("examples/distributed.py", run_name="__main__")
"""
SHORT = "--steps 24 --evaluate-every 8 --batch-size 16 --hidden-size 8 --out".split()


def example(out, *args, told=False, **launch):
    program = EXAMPLE.format(args=[*SHORT, str(out), *args], told=told)
    return Launched(program, **launch)


def losses(out):
    with open(out / "metrics.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    return [float(row[name]) for row in rows for name in ("loss", "valid_loss")]


def files(out):
    return sorted(str(path.relative_to(out)) for path in out.rglob("*"))


def test_the_example_is_the_same_on_any_devices_and_goes_on_on_others(tmp_path):
    one, four, two = (tmp_path / name for name in ("1", "4", "2x2"))
    alone = [example(one, count=1, devices=1), example(four, count=1, devices=4)]
    # Told to one process alone, all stop at one step, and all is saved.
    stopped = example(two, told=True).ended()
    assert [stopped[n][0] for n in (0, 1)] == [143, 143], stopped
    assert "interrupted after 13 steps" in stopped[0][1], stopped
    assert not [words for *_, words in stopped.values() if "Warning" in words]
    for each in alone:
        assert each.ended()[0][0] == 0
    assert len(losses(one)) == 6

    again = shutil.copytree(two, tmp_path / "again")
    gone_on = [
        example(two, "--resume", devices=1),
        example(again, "--resume", count=1, devices=2),
    ]
    for each in gone_on:
        for n, (status, out, said) in each.ended().items():
            assert status == 0, said
            assert ("done after 24 steps" in out) == (n == 0), out
    for out in (four, two, again):
        np.testing.assert_allclose(losses(out), losses(one), rtol=1e-6)
        names = [[f for f in files(o) if "arrays" not in f] for o in (out, one)]
        assert names[0] == names[1]
