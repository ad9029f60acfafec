"""Who started this process, as which one of how many: read from variables alone."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

LOOPBACK = "127.0.0.1"
# Ports above those that Linux hands out by itself, 32768 to 60999.
_FIRST_PORT, _PORTS = 61440, 4000
_ADDRESS = "JAX_COORDINATOR_ADDRESS"
_SAY = (
    "JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS=host:port say it "
    "for any launcher."
)
# An address of IPv6 has brackets, since what is behind its last colon is no port.
_HOST = r"\[[^\s/\[\]]+\]|[^\s:/\[\]]+"
# Variables in which launchers that are not known here say how many there are.
_SIZES = ("PMI_SIZE", "MV2_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE", "WORLD_SIZE")
# And in which they say which one this is; "RANK" may be another thing.
_RANKS = ("PMI_RANK", "MV2_COMM_WORLD_RANK", "JSM_NAMESPACE_RANK")
_SERVERS = ("PMIX_SERVER_URI41", "PMIX_SERVER_URI4", "PMIX_SERVER_URI2")


class Launch(NamedTuple):
    """What a launcher says of this process.

    Attributes:
        launcher: its name.
        index: which process this is.
        count: of how many.
        hosts: where the others may find process 0, the likeliest first.
        port: the port there.
        source: the variables that say where, for errors.
        job: what no other launch has in common with this one.
        local: which process of this host it is, and of how many; None if not known.
        note: what else is to be said.
    """

    launcher: str
    index: int = 0
    count: int = 1
    hosts: tuple[str, ...] = ()
    port: int = 0
    source: str = ""
    job: str = ""
    local: tuple[int, int] | None = None
    note: str = ""


def recognised(environ: Mapping[str, str]) -> Launch:
    """Reads who started this process.

    Raises:
        ValueError: if a launcher is there by half, variables contradict each other, or
            one of a launcher that is not known says that there are more processes.
    """
    launched = _open_mpi(environ) or _slurm(environ)
    launch = _told(environ, launched) or launched or Launch("no launcher")
    launch = _placed(environ, launch)
    _check_sizes(environ, launch)
    if launch.port > 65535:
        raise ValueError(
            f"{launch.source}: expected a port from 1 to 65535, got {launch.port}."
        )
    if launch.count > 1 and not (launch.hosts and launch.port):
        raise ValueError(
            f"{_ADDRESS}: expected host:port of process 0, since {launch.launcher} "
            f"says that this is process {launch.index} of {launch.count}, got "
            f"{'no port' if launch.hosts else 'none'}."
        )
    if not 0 <= launch.index < launch.count:
        raise ValueError(
            f"{launch.launcher}: expected a process below {launch.count}, as many as "
            f"it says there are, got {launch.index}."
        )
    if not launch.note and environ.get("SLURM_JOB_ID") and launch.count == 1:
        if launch.launcher == "no launcher":
            note = "within a job of SLURM, but no step of it: srun starts one"
            launch = launch._replace(note=note)
    return launch


def _told(environ: Mapping[str, str], launched: Launch | None) -> Launch | None:
    """What plain variables say, those of Kubeflow and of indexed Jobs among them."""
    counted, numbered = _plain(environ, "NUM_PROCESSES"), _plain(environ, "PROCESS_ID")
    pod = _integer(environ, "JOB_COMPLETION_INDEX")
    if counted is None:
        if launched is not None and numbered is None:
            return None
        named = numbered or _plain(environ, "COORDINATOR_ADDRESS")
        if named is None and pod is None:
            return None
        which = "JOB_COMPLETION_INDEX" if named is None else named[0]
        raise ValueError(
            f"JAX_NUM_PROCESSES: expected the number of processes beside {which}, got "
            f"none. {_SAY} JAX_NUM_PROCESSES=1 is for processes that work alone."
        )
    count = _integer(environ, counted[0])
    assert count is not None
    if count < 1:
        raise ValueError(f"{counted[0]}: expected 1 or more, got {count}.")
    if launched is not None and count < launched.count:
        raise ValueError(
            f"{counted[0]}: expected at least the {launched.count} processes that "
            f"{launched.launcher} says it started, got {count}."
        )
    index = pod if numbered is None else _integer(environ, numbered[0])
    if index is None and launched is not None and launched.count == count:
        index = launched.index
    if index is None and count > 1:
        raise ValueError(
            f"JAX_PROCESS_ID: expected the number of this process, below {count}, "
            f"beside {counted[0]}, got none. {_SAY}"
        )
    if launched is not None and launched.count == count:
        return launched._replace(index=index or 0)
    in_pod = pod is not None or "KUBERNETES_SERVICE_HOST" in environ
    name = "Kubernetes" if in_pod else f"the variable {counted[0]}"
    return Launch(name, index or 0, count)


def _placed(environ: Mapping[str, str], launch: Launch) -> Launch:
    """With the address that variables say, whoever the launcher is."""
    said, port = (
        _plain(environ, name) for name in ("COORDINATOR_ADDRESS", "COORDINATOR_PORT")
    )
    if port is not None:
        number = _integer(environ, port[0])
        sources = filter(None, (launch.source, port[0]))
        launch = launch._replace(port=number or 0, source=", ".join(sources))
    if said is None:
        return launch
    name, address = said
    host, colon, behind = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, behind = address, ""
    if (behind and not behind.isdigit()) or not re.fullmatch(_HOST, host):
        raise ValueError(
            f"{name}: expected host:port, got {address!r}. An address of IPv6 has "
            "brackets, as [::1]:1234."
        )
    if behind and port is not None and int(behind) != launch.port:
        raise ValueError(
            f"{port[0]}: expected {behind}, the port of {name}, got {launch.port}."
        )
    there = int(behind or launch.port)
    launch = launch._replace(hosts=(host.strip("[]"),), port=there, source=name)
    return launch if launch.job else launch._replace(job=f"{host}:{there}")


def _open_mpi(environ: Mapping[str, str]) -> Launch | None:
    """Open MPI 5, which PRRTE launches, and 4."""
    uri = environ.get("OMPI_MCA_orte_hnp_uri")
    prte = "PRTE_LAUNCHED" in environ
    size = _integer(environ, "OMPI_COMM_WORLD_SIZE")
    rank = _integer(environ, "OMPI_COMM_WORLD_RANK")
    if size is None and rank is None and uri is None and not prte:
        return None
    rank = _integer(environ, "PMIX_RANK") if rank is None else rank
    version = environ.get("OMPI_VERSION", "4" if uri else "5").partition(".")[0]
    name = f"Open MPI {version}"
    if size is None or rank is None:
        if size is None and _plain(environ, "NUM_PROCESSES"):
            return None  # Of prterun, which does not say how many there are.
        missing = "OMPI_COMM_WORLD_SIZE" if size is None else "OMPI_COMM_WORLD_RANK"
        raise ValueError(
            f"{missing}: expected a number beside the other variables of {name}, got "
            f"none. {_SAY}"
        )
    local = [
        _integer(environ, f"OMPI_COMM_WORLD_LOCAL_{part}") for part in ("RANK", "SIZE")
    ]
    rank_here, here = local
    job = environ.get("PMIX_NAMESPACE", uri or "").partition(";")[0]
    hosts = (LOOPBACK,) if here == size else tuple(_heads(environ, uri))
    return Launch(
        name,
        rank,
        size,
        hosts,
        _port(job),
        "PMIX_NAMESPACE" if uri is None else "OMPI_MCA_orte_hnp_uri",
        job,
        None if rank_here is None or here is None else (rank_here, here),
    )


def _heads(environ: Mapping[str, str], uri: str | None) -> list[str]:
    """Where mpirun runs: process 0 is there, unless it was told to be elsewhere."""
    hosts = []
    named = re.fullmatch(r"prterun-(.+)-\d+@\d+", environ.get("PMIX_NAMESPACE", ""))
    if named:
        hosts.append(named[1])
    first = (environ.get(name, "") for name in _SERVERS)
    # Those of other daemons than the first are where they are, not where it is.
    uris = [uri or "", *(one for one in first if re.match(r"[^;]*\.0;", one))]
    for one in uris:
        for kind in re.findall(r"tcp4?://([^:;]+)|tcp6://\[([^\]]+)\]", one):
            hosts += "".join(kind).split(",")
    return list(dict.fromkeys(hosts))


def _slurm(environ: Mapping[str, str]) -> Launch | None:
    """A step of SLURM. A shell within a job is none, whatever SLURM_NTASKS says."""
    rank = _integer(environ, "SLURM_PROCID")
    size = _integer(environ, "SLURM_STEP_NUM_TASKS")
    nodes = environ.get("SLURM_STEP_NODELIST", "")
    if rank is not None and nodes and size is None:
        size = _integer(environ, "SLURM_NTASKS")
    if rank is None or size is None or not nodes:
        if (size or 0) > 1 or (rank or 0) > 0:
            expected = {
                "SLURM_PROCID": rank,
                "SLURM_STEP_NUM_TASKS": size,
                "SLURM_STEP_NODELIST": nodes or None,
            }
            missing = [name for name, value in expected.items() if value is None]
            raise ValueError(
                f"{missing[0]}: expected one beside the other variables of a step of "
                f"SLURM, got none. Were some of them lost on the way? {_SAY}"
            )
        return None
    job = environ.get("SLURM_JOB_ID", environ.get("SLURM_JOBID", ""))
    step = environ.get("SLURM_STEP_ID", environ.get("SLURM_STEPID", ""))
    alone = not re.search(r"[\[,]", nodes)
    return Launch(
        "SLURM",
        rank,
        size,
        (LOOPBACK,) if alone else (first_node(nodes),),
        _port(f"{job}.{step}"),
        "SLURM_STEP_NODELIST",
        f"SLURM {job}.{step}",
        _tasks_here(environ, size if alone else None),
    )


def first_node(nodes: str) -> str:
    """The first name of a list as SLURM writes them.

    Example:
        >>> from lstm_jax.distributed.launchers import first_node
        >>> first_node("rack[2-3]-gpu[007,011-013],login"), first_node("a,b")
        ('rack2-gpu007', 'a')
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([^,\-\]]+)[^\]]*\]", r"\1", first[0] if first else nodes)


def _tasks_here(
    environ: Mapping[str, str], every: int | None
) -> tuple[int, int] | None:
    """Which task of this node it is, and of how many: "2(x3),1" is 2, 2, 2, 1."""
    rank, node = (_integer(environ, f"SLURM_{n}") for n in ("LOCALID", "NODEID"))
    if rank is None or every is not None:
        return None if rank is None or every is None else (rank, every)
    counts = []
    written = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", written):
        counts += [int(number)] * int(times or 1)
    if node is None or node >= len(counts):
        return None
    return rank, counts[node]


def _check_sizes(environ: Mapping[str, str], launch: Launch) -> None:
    """Refuses to be fewer than any variable says there are."""
    hosts = environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if len(hosts) > launch.count:
        raise ValueError(
            f"TPU_WORKER_HOSTNAMES: expected as many processes as its {len(hosts)} "
            f"hosts, got {launch.count} by {launch.launcher}. Call "
            "jax.distributed.initialize() first, which knows pods of TPUs."
        )
    for name in _SIZES:
        size = _integer(environ, name)
        if size is not None and size > launch.count:
            raise ValueError(
                f"{name}: expected the variables of a launcher that is known, SLURM, "
                f"Open MPI or Kubernetes, for {size} processes, got {launch.launcher} "
                f"and {launch.count}. {_SAY}"
            )
    if launch.launcher != "no launcher":
        return
    ranks = [name for name in _RANKS if _integer(environ, name)]
    for name in ("PMIX_RANK",) if "PMIX_RANK" in environ else ranks:
        raise ValueError(
            f"{name}: expected a variable beside it that says how many processes "
            f"there are, got none. {_SAY}"
        )


def _plain(environ: Mapping[str, str], name: str) -> tuple[str, str] | None:
    """A variable with JAX's prefix or without: its name and what it says."""
    there = [
        (one, environ[one]) for one in (f"JAX_{name}", name) if environ.get(one, "")
    ]
    if len(there) == 2 and there[0][1] != there[1][1]:
        raise ValueError(
            f"{name}: expected {there[0][1]!r}, as JAX_{name} says, got "
            f"{there[1][1]!r}."
        )
    return there[0] if there else None


def _integer(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "").strip()
    if not text:
        return None
    if not re.fullmatch(r"\d+", text):
        raise ValueError(f"{name}: expected an integer from 0 on, got {text!r}.")
    return int(text)


def _port(job: str) -> int:
    """A port that all processes of a job come to, and others seldom."""
    return _FIRST_PORT + zlib.crc32(job.encode()) % _PORTS if job else 0
