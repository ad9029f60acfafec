"""Who started a process, read from variables set by hand; no process is started."""

import pathlib
import sys
import types

import pytest
import yaml

from lstm_jax.distributed import joining, ray_train
from lstm_jax.distributed.launchers import first_node, recognised

SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[007,009-012]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
# As mpirun 4.1.8 and 5.0.11 set them, of two hosts.
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "3",
}
MPI_4 = MPI | {
    "OMPI_MCA_orte_hnp_uri": "1501757440.0;tcp://192.0.2.2,10.0.0.2:5;tcp6://[fd00::2]:3",
    "PMIX_NAMESPACE": "1501757441",
}
MPI_5 = MPI | {
    "PRTE_LAUNCHED": "1",
    "OMPI_VERSION": "5.0.11",
    "PMIX_NAMESPACE": "prterun-head-13487@1",
    "PMIX_SERVER_URI41": "prterun-head-13487@0.1;tcp4://192.0.2.3:50167",
}
JAX = {
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
    "JAX_COORDINATOR_ADDRESS": "one:9",
}
PLAIN = {name.removeprefix("JAX_"): value for name, value in JAX.items()}
KUBEFLOW = JAX | {"JAX_COORDINATOR_PORT": "9", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
POD = {
    "JOB_COMPLETION_INDEX": "3",
    "JAX_NUM_PROCESSES": "4",
    "JAX_COORDINATOR_ADDRESS": "train-0.train:9",
}


def without(environ, *names):
    return {name: value for name, value in environ.items() if name not in names}


@pytest.mark.parametrize(
    "environ, launcher, hosts",
    [
        (SLURM, "SLURM", ("gpu007",)),
        (without(SLURM, "SLURM_STEP_NUM_TASKS"), "SLURM", ("gpu007",)),
        (SLURM | {"SLURM_STEP_NODELIST": "gpu007"}, "SLURM", ("127.0.0.1",)),
        (MPI_4, "Open MPI 4", ("192.0.2.2", "10.0.0.2", "fd00::2")),
        (MPI_5, "Open MPI 5", ("head",)),
        (without(MPI_5, "OMPI_COMM_WORLD_RANK", "OMPI_VERSION"), "Open MPI 5", None),
        (MPI_5 | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, "Open MPI 5", ("127.0.0.1",)),
        # mpirun within a job, whose daemons are a step of SLURM.
        (
            SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"} | MPI_5,
            None,
            None,
        ),
        (KUBEFLOW, "Kubernetes", ("one",)),
        (POD, "Kubernetes", ("train-0.train",)),
        (PLAIN, "the variable NUM_PROCESSES", ("one",)),
        (JAX, "the variable JAX_NUM_PROCESSES", ("one",)),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "[fd00::1]:9"}, "SLURM", ("fd00::1",)),
        (SLURM | {"PMIX_RANK": "3", "PMI_SIZE": "4"}, "SLURM", None),
    ],
)
def test_a_launcher_is_recognised(environ, launcher, hosts):
    launch = recognised(environ)
    assert launch.launcher == (launcher or "Open MPI 5")
    assert (launch.index, launch.count) == (3, 4)
    assert hosts is None or launch.hosts == hosts
    assert launch.port == 9 or 61440 <= launch.port < 65536


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_JOB_ID": "77"},
        # The shells of salloc and sbatch.
        {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "a,b"},
        {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"JAX_NUM_PROCESSES": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"JOB_COMPLETION_INDEX": "3", "NUM_PROCESSES": "1", "PROCESS_ID": "0"},
        {"WORLD_SIZE": "1"},
    ],
)
def test_one_process_where_no_more_were_started(environ):
    assert recognised(environ)[1:3] == (0, 1)


def test_a_shell_within_a_job_is_told_of_srun():
    assert "srun" in recognised({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}).note


@pytest.mark.parametrize(
    "environ, words",
    [
        (without(SLURM, "SLURM_STEP_NODELIST"), "SLURM_STEP_NODELIST: expected one"),
        (without(SLURM, "SLURM_PROCID"), "SLURM_PROCID: expected one"),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "1"}, "SLURM_STEP_NUM_TASKS: expected"),
        (SLURM | {"SLURM_PROCID": "4"}, "SLURM: expected a process below 4"),
        (SLURM | {"SLURM_PROCID": "x"}, "SLURM_PROCID: expected an integer"),
        (MPI, "JAX_COORDINATOR_ADDRESS: expected host:port"),
        ({"PRTE_LAUNCHED": "1", "PMIX_RANK": "0"}, "OMPI_COMM_WORLD_SIZE: expected"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK: expected"),
        ({"PMIX_RANK": "0"}, "PMIX_RANK: expected a variable beside"),
        ({"OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_SIZE: expected"),
        ({"PMI_RANK": "1"}, "PMI_RANK: expected a variable beside"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "PMI_SIZE: expected the variables"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE: expected the variables"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_HOSTNAMES: expected"),
        ({"JOB_COMPLETION_INDEX": "0"}, "beside JOB_COMPLETION_INDEX, got none"),
        ({"JAX_COORDINATOR_ADDRESS": "one:9"}, "JAX_NUM_PROCESSES: expected"),
        (without(JAX, "JAX_PROCESS_ID"), "JAX_PROCESS_ID: expected the number"),
        (without(JAX, "JAX_COORDINATOR_ADDRESS"), "JAX_COORDINATOR_ADDRESS: expected"),
        (JAX | {"JAX_COORDINATOR_ADDRESS": "one"}, "got no port"),
        (JAX | {"JAX_COORDINATOR_ADDRESS": "one:x"}, "expected host:port, got 'one:x'"),
        (JAX | {"JAX_COORDINATOR_ADDRESS": "http://one:9"}, "expected host:port, got"),
        (JAX | {"JAX_COORDINATOR_ADDRESS": "fd00::1"}, "has brackets"),
        (JAX | {"JAX_COORDINATOR_ADDRESS": ":9"}, "expected host:port, got ':9'"),
        (JAX | {"JAX_COORDINATOR_ADDRESS": "one:65536"}, "ADDRESS: .*to 65535, got"),
        (SLURM | {"JAX_COORDINATOR_PORT": "65536"}, "PORT: .*to 65535, got 65536"),
        (JAX | {"NUM_PROCESSES": "2"}, "NUM_PROCESSES: expected '4'"),
        (JAX | {"COORDINATOR_PORT": "8"}, "COORDINATOR_PORT: expected 9"),
        (
            MPI_5 | {"JAX_NUM_PROCESSES": "1"},
            "at least the 4 processes that Open MPI 5",
        ),
        (JAX | {"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES: expected 1 or more"),
        (JAX | {"WORLD_SIZE": "8"}, "WORLD_SIZE: expected the variables"),
    ],
)
def test_half_a_launcher_is_an_error(environ, words):
    with pytest.raises(ValueError, match=words):
        recognised(environ)


def test_jobs_come_to_ports_of_their_own():
    other = SLURM | {"SLURM_JOB_ID": "78"}
    assert recognised(SLURM).port != recognised(other).port
    assert recognised(SLURM).job != recognised(other).job
    assert recognised(SLURM) == recognised(dict(SLURM))


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("node[001,007-015],host2", "node001"),
        ("a[1-2]b[3,4],c", "a1b3"),
    ],
)
def test_the_first_node_of_a_list(nodes, first):
    assert first_node(nodes) == first


def test_processes_of_a_host_share_its_devices():
    seen = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert joining._gpus(seen) == 4
    assert joining._gpus(seen | {"SLURM_GPUS_PER_TASK": "4"}) is None
    assert joining._share_of(4, recognised(SLURM).local) == [2, 3]
    # One process for a node has all that it sees.
    assert joining._share_of(4, (0, 1)) is None
    assert joining._share_of(1, (1, 2)) is None


def test_idle_devices_are_told_of():
    joining._warn_of_idle(4, 2, 2)
    with pytest.warns(UserWarning, match="4 GPUs are here, and the 1 processes"):
        joining._warn_of_idle(4, 1, 1)


def test_the_manifest_of_the_documentation_says_what_is_recognised():
    path = pathlib.Path(__file__).parents[1] / "docs/how-to/distributed.yaml"
    parts = {part["kind"]: part for part in yaml.safe_load_all(path.read_text())}
    service, job = parts["Service"], parts["Job"]["spec"]
    pod, name = job["template"]["spec"], parts["Job"]["metadata"]["name"]
    said = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
    launch = recognised(said | {"JOB_COMPLETION_INDEX": "1"})
    assert (launch.index, launch.count) == (1, job["completions"])
    assert job["completions"] == job["parallelism"]
    assert job["completionMode"] == "Indexed"
    assert launch.hosts == (f"{name}-0.{pod['subdomain']}",)
    assert pod["subdomain"] == service["metadata"]["name"]
    spec = service["spec"]
    assert spec["clusterIP"] == "None" and spec["publishNotReadyAddresses"]
    assert spec["selector"] == {"batch.kubernetes.io/job-name": name}
    assert spec["ports"][0]["port"] == launch.port


def ray_of(monkeypatch, context, say=None):
    """Ray's modules, as a worker or whoever starts them has imported them."""
    ray, train = types.ModuleType("ray"), types.ModuleType("ray.train")
    collective = types.ModuleType("ray.train.collective")
    address = lambda: "10.0.0.7"
    ray.util = types.SimpleNamespace(get_node_ip_address=address)  # pyright: ignore
    train.get_context = lambda: context  # pyright: ignore
    train.collective = collective  # pyright: ignore
    collective.broadcast_from_rank_zero = say  # pyright: ignore
    for module in (ray, train, collective):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def in_worker(index, count):
    return types.SimpleNamespace(
        get_world_size=lambda: count, get_world_rank=lambda: index
    )


def test_workers_of_ray_train_are_told_where_the_first_is(monkeypatch):
    """Whatever started Ray on the node, such as a step of SLURM, says nothing."""
    said = []
    ray_of(monkeypatch, in_worker(0, 2), lambda one: said.append(one) or one)
    first = joining._launch(SLURM)
    assert first[:4] == ("Ray Train", 0, 2, ("10.0.0.7",)) and first.port
    ray_of(monkeypatch, in_worker(1, 2), lambda one: one or said[0])
    other = joining._launch(SLURM)
    assert other == first._replace(index=1)
    ray_of(monkeypatch, in_worker(0, 1))
    assert joining._launch({})[:3] == ("Ray Train", 0, 1)


def test_what_starts_workers_of_ray_is_none_of_them(monkeypatch):
    def refuse():
        raise RuntimeError("TrainContext has not been initialized.")

    ray_of(monkeypatch, types.SimpleNamespace(get_world_size=refuse))
    assert ray_train.recognised() is None
    assert joining._launch({}).launcher == "no launcher"
    assert joining._launch(SLURM).launcher == "SLURM"
