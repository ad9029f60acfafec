"""Accelerators to compile for on a machine that has none.

The TPU compiler is in ``libtpu``, which asks its environment and not the machine what
chips there are; XLA for NVIDIA's GPUs is in JAX's CUDA plugin, which takes a
description of the chip. Import this module before JAX: both read the environment once.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Any

_ENVIRONMENT = {
    # Arrays that are made on the way are on the CPU.
    "JAX_PLATFORMS": "cpu",
    # What a TPU virtual machine would answer where it was asked.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
_PACKAGES = ("libtpu", "jax_plugins.xla_cuda13", "nvidia")

# An H100 SXM as XLA describes it: openxla/xla, xla/tools/hlo_opt/gpu_specs/.
_H100 = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "shared_memory_per_core": 233472,
    "shared_memory_per_block_optin": 232448,
    "threads_per_core_limit": 2048,
    "core_count": 132,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2147483647,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "memory_bandwidth": 3352320000000,
    "l2_cache_size": 52428800,
    "clock_rate_ghz": 1.98,
    "device_memory_size": 84942979072,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
}


def missing() -> str:
    """Which package is missing for this, and what helps; empty if none is."""
    for name in _PACKAGES:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"{name} is not installed: make aot sets up .venv-aot, which has it"
    return ""


def prepare() -> None:
    """Sets the environment that both compilers read; before JAX is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    (nvidia,) = importlib.import_module("nvidia").__path__
    toolkit = next(path.parent for path in pathlib.Path(nvidia).glob("*/nvvm"))
    # Nothing can be timed here, so nothing is chosen by timing.
    flags = f"--xla_gpu_cuda_data_dir={toolkit} --xla_gpu_autotune_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    # Before anything asks JAX for a device: it would start the plugin in its own way.
    _cuda_plugin()


@functools.cache
def _cuda_plugin() -> Any:
    plugin: Any = importlib.import_module("jax_plugins.xla_cuda13")
    xla_client: Any = importlib.import_module("jaxlib.xla_client")
    library = pathlib.Path(plugin.__file__).with_name("xla_cuda_plugin.so")
    api = xla_client.load_pjrt_plugin_dynamically("cuda", str(library))
    xla_client.initialize_pjrt_plugin("cuda")
    # The plugin's own start insists on a driver and on cuDNN.
    plugin.initialize = lambda: None
    return api


def _tpu(topology: str) -> Sequence[Any]:
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def _h100(topology: str) -> Sequence[Any]:
    xla_client: Any = importlib.import_module("jaxlib.xla_client")
    described = xla_client.make_c_api_device_topology(
        _cuda_plugin(), topology, target_config=_description(), topology=topology
    )
    return described._make_compile_only_devices()


def _description() -> str:
    """The chip in the text format of XLA's ``GpuTargetConfigProto``."""
    device = " ".join(f"{name}: {value}" for name, value in _H100.items())
    return (
        f"gpu_device_info {{ {device} cuda_compute_capability {{ major: 9 }} }}\n"
        'platform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 10 }\n"
        'device_description_str: "NVIDIA H100 80GB HBM3"\n'
    )


# For each target the topologies there are, by their number of chips.
TARGETS: dict[str, dict[int, str]] = {
    "v5e": {4: "v5e:2x2", 8: "v5e:2x4", 256: "v5e:16x16"},
    "v6e": {4: "v6e:2x2"},
    "v5p": {4: "v5p:2x2x1"},
    "h100": {1: "1x1x1", 8: "1x1x8"},
}


@functools.cache
def devices(target: str, chips: int = 1) -> tuple[Any, ...]:
    """Some devices of a target: they compile and do nothing else."""
    topologies = TARGETS[target]
    topology = topologies[min(n for n in topologies if n >= chips)]
    every = _h100(topology) if target == "h100" else _tpu(topology)
    return tuple(every)[:chips]
