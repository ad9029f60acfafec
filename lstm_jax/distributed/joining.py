"""One call by which processes become one run of JAX, or end with an error."""

from __future__ import annotations

import glob
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from lstm_jax.checks import options
from lstm_jax.distributed import launchers, meeting, ray_train, watching
from lstm_jax.distributed.launchers import Launch


class Joined(NamedTuple):
    """What :func:`initialize_from_env` found.

    Attributes:
        launcher: who started this process: "SLURM", "Open MPI 5", "Kubernetes", "Ray
            Train", the name of a variable, or "no launcher".
        process: which process this is.
        processes: of how many.
        local_devices: how many devices this process has.
        devices: how many all of them have.

    Example:
        >>> from lstm_jax import distributed
        >>> joined = distributed.Joined("SLURM", 0, 2, 4, 8)
        >>> joined.processes, joined.devices
        (2, 8)
    """

    launcher: str
    process: int
    processes: int
    local_devices: int
    devices: int


_joined: list[Joined] = []


def initialize_from_env(
    *,
    initialization_timeout: float = 300.0,
    heartbeat_timeout: float = 45.0,
    step_timeout: float | None = 600.0,
    local_device_ids: Sequence[int] | None = None,
) -> Joined:
    """Joins the processes that a launcher has started; to be called before all else.

    It reads the variables of SLURM's steps, of Open MPI 4 and 5, and, for Kubernetes,
    Kubeflow and whatever else starts processes, plain ones:

    - ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, the latter ``JOB_COMPLETION_INDEX``
      in an indexed Job of Kubernetes;
    - ``JAX_COORDINATOR_ADDRESS``, host and port of process 0, and
      ``JAX_COORDINATOR_PORT`` where it has no port. Beside a launcher's variables these
      are used in place of what it would say.

    Each is known without ``JAX_`` too. Workers of Ray Train are asked of Ray, whoever
    started that. What was found is said in one line on stderr.
    There are then as many processes as the launcher says, or an error is raised. Where
    there is no launcher, such as in a shell within a job of SLURM, there is one
    process, and nothing is joined. To call it again changes nothing.

    From then on, where a process dies, is stopped, or ends with an error, every other
    one ends with status 1 and a sentence on stderr that names it. JAX's preemption
    service is off, so that SIGTERM does what it does in one process.

    Args:
        initialization_timeout: seconds within which all processes have to come. Until
            then a coordinator that is not there yet, a name that is not known yet and a
            port that is taken are tried again.
        heartbeat_timeout: seconds after which a process that says nothing counts as
            lost. JAX's own limit is set to twice that and 10.
        step_timeout: seconds for which a step of :func:`lstm_jax.training.fit`, or
            an exchange such as that of :func:`global_batch`, may wait for a process
            that lives but does not come. None for no limit.
        local_device_ids: the devices of this process; by default all that it sees,
            except where several processes of a host see the same GPUs: they share them.

    Returns:
        What was found.

    Raises:
        ValueError: if a launcher is recognised by half, or one that is not known says
            that there are several processes; if a limit is not positive.
        TimeoutError: if a process does not come in time; it says which.
        RuntimeError: if processes contradict each other, or JAX has been used before.

    Example:
        >>> from lstm_jax import distributed
        >>> joined = distributed.initialize_from_env()
        >>> joined.launcher, joined.process, joined.processes
        ('no launcher', 0, 1)
    """
    for name, value in (
        ("initialization_timeout", initialization_timeout),
        ("heartbeat_timeout", heartbeat_timeout),
        ("step_timeout", step_timeout),
    ):
        options.check_limit(name, value)
    if _joined:
        return _joined[0]
    launch = _launch(os.environ)
    if launch.count > 1 and not jax.distributed.is_initialized():
        met = meeting.meet(launch, initialization_timeout)
        watching.own.limit = step_timeout
        watching.Watch(met, launch.index, heartbeat_timeout)
        _initialize(launch, met, heartbeat_timeout, local_device_ids)
    joined = Joined(
        launch.launcher,
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )
    if joined.processes < launch.count:
        raise RuntimeError(
            f"{launch.launcher}: expected {launch.count} processes, as it says, got "
            f"{joined.processes}. Was jax.distributed.initialize called for fewer?"
        )
    _joined.append(joined)
    _say(joined, launch)
    return joined


def _launch(environ: Mapping[str, str]) -> Launch:
    """Who started this process; whoever has joined JAX already knows it best."""
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        name = "jax.distributed.initialize"
        return Launch(name, jax.process_index(), jax.process_count())
    # Whatever has started Ray says nothing of its workers.
    return ray_train.recognised() or launchers.recognised(environ)


def _initialize(
    launch: Launch, met: meeting.Met, silence: float, ids: Sequence[int] | None
) -> None:
    bind, local = meeting.addresses(launch)
    host = met.host
    if host is None:
        # Process 0 reaches itself whatever the others call it.
        host = launch.hosts[0] if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ else None
        host = host or (launch.hosts[0] if local else launchers.LOOPBACK)
    _pass_proxies_by(host)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM, and do nothing with it.
    jax.config.update("jax_enable_preemption_service", False)
    ids = _share_of(_gpus(os.environ), launch.local) if ids is None else ids
    jax.distributed.initialize(
        f"[{host}]:{launch.port}" if ":" in host else f"{host}:{launch.port}",
        launch.count,
        launch.index,
        local_device_ids=ids,
        cluster_detection_method="deactivate",
        initialization_timeout=60,  # All are here.
        # After this library's own, which has words.
        heartbeat_timeout_seconds=int(2 * silence) + 10,
        # Whoever has ended waits for the others, which may write or draw yet.
        shutdown_timeout_seconds=int(2 * (watching.own.limit or 1e6)),
        coordinator_bind_address=bind,
    )


def _pass_proxies_by(host: str) -> None:
    """Keeps gRPC from asking a proxy for process 0, and JAX from a warning of it."""
    there = os.environ.get("no_grpc_proxy", os.environ.get("no_proxy", ""))
    os.environ["no_grpc_proxy"] = ",".join(filter(None, (there, host)))
    jax.config.update("jax_check_proxy_envs", False)


def _gpus(environ: Mapping[str, str]) -> int | None:
    """How many GPUs of NVIDIA this process sees; None where each has its own."""
    bound = ("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "JAX_LOCAL_DEVICE_IDS")
    if environ.get("JAX_PLATFORMS") == "cpu" or any(name in environ for name in bound):
        return None
    if "CUDA_VISIBLE_DEVICES" in environ:
        return len([one for one in environ["CUDA_VISIBLE_DEVICES"].split(",") if one])
    return len(glob.glob("/dev/nvidia[0-9]*"))


def _share_of(devices: int | None, local: tuple[int, int] | None) -> list[int] | None:
    """The devices of one of several processes of a host that all see the same."""
    if not devices or local is None or local[1] == 1 or devices < local[1]:
        return None
    rank, here = local
    each = devices // here
    return [*range(rank * each, (rank + 1) * each)]


def _say(joined: Joined, launch: Launch) -> None:
    note = f"; {launch.note}" if launch.note else ""
    sys.stderr.write(
        f"lstm_jax: {joined.launcher}: process {joined.process} of {joined.processes}, "
        f"{joined.local_devices} of {joined.devices} devices "
        f"({jax.default_backend()}){note}.\n"
    )
    sys.stderr.flush()
    seen = _gpus(os.environ)
    here = launch.local[1] if launch.local else 1
    if seen and jax.default_backend() != "tpu":
        _warn_of_idle(seen, joined.local_devices if _on_gpu() else 0, here)


def _on_gpu() -> bool:
    return jax.default_backend() in ("gpu", "cuda")


def _warn_of_idle(seen: int, used: int, here: int) -> None:
    """Warns where a host's processes leave devices to themselves."""
    if used * here < seen:
        warnings.warn(
            f"devices: {seen} GPUs are here, and the {here} processes of this host use "
            f"{used} each. One process with all of them, or {seen} with one each, "
            "leaves none idle.",
            stacklevel=4,
        )
