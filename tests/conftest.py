"""What every test runs under: strict promotion, four CPU devices."""

import collections
import itertools
import signal
import zlib

import jax
import pytest

# One in how many examples of a test is run where the suite is sampled, by module: those
# that compile a program for each of many.
SAMPLED = {
    "test_data_given": 2,
    "test_targets": 4,
    "test_convert_flax_errors": 2,
    "test_onnx_hostile": 2,
    "test_pallas_tpu": 6,
    "test_onnx_nodes": 2,
    "test_serving_refusals": 2,
    "test_keras": 2,
    "test_torch": 2,
    "test_onnx": 2,
    "test_shapes": 2,
    "test_options_refused": 2,
    "test_beam_search": 4,
    "test_cells": 4,
    "test_checkpoints_damaged": 4,
    "test_checkpoints_written": 4,
    "test_convert": 4,
    "test_convert_cudnn": 6,
    "test_convert_equinox": 8,
    "test_convert_files": 4,
    "test_convert_files_old": 4,
    "test_convert_files_refused": 4,
    "test_convert_flax": 8,
    "test_convert_flax_trees": 2,
    "test_convert_haiku": 8,
    "test_convert_tf1": 4,
    "test_convert_xlstm": 4,
    "test_cpu": 4,
    "test_cpu_variants": 4,
    "test_ctc": 6,
    "test_ctc_decoding": 4,
    "test_data_batches": 6,
    "test_decoding": 6,
    "test_description_programs": 4,
    "test_export": 4,
    "test_exporting": 4,
    "test_exporting_refused": 4,
    "test_flax_modules": 4,
    "test_flax_options": 4,
    "test_flax_partitioning": 4,
    "test_hostile_files": 2,
    "test_hostile_safetensors": 2,
    "test_hostile_zips": 2,
    "test_keras_files": 4,
    "test_kernels_nonfinite": 6,
    "test_layers": 4,
    "test_layouts": 4,
    "test_linear_cross_entropy": 6,
    "test_linear_cross_entropy_transforms": 6,
    "test_losses": 4,
    "test_losses_of_errors": 4,
    "test_losses_on_devices": 16,
    "test_metrics": 4,
    "test_onnx_reading": 6,
    "test_onnx_attributes": 6,
    "test_onnx_exported": 6,
    "test_onnx_inputs": 6,
    "test_onnx_writing": 8,
    "test_onnx_writing_refused": 8,
    "test_oracle_agreement": 4,
    "test_parallel": 4,
    "test_pipelines": 4,
    "test_quantized": 4,
    "test_regularization": 4,
    "test_resume": 4,
    "test_resume_odd": 4,
    "test_sequence": 4,
    "test_serving": 2,
    "test_serving_failures": 2,
    "test_sharding": 8,
    "test_sharding_around": 4,
    "test_sharding_uses": 4,
    "test_stack": 6,
    "test_steps": 4,
    "test_streaming": 4,
    "test_tasks": 8,
    "test_tasks_data": 8,
    "test_torch_forms": 4,
    "test_truncated": 4,
}

# In the background of a shell Ctrl-C is ignored, by these tests' programs too.
signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")


def pytest_addoption(parser):
    parser.addoption(
        "--contract",
        choices=("few", "sample", "pairs", "all"),
        default="sample",
        help="how much runs of tests/contract and of what compiles much: a sample of "
        "every cell, implementation, dtype and check, with few examples of the rest or "
        "some; everything, but of the contract every pair of a cell and an "
        "implementation, in some dtypes; every combination",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Leaves out, of each test in :data:`SAMPLED`, all but some of its examples.

    Which ones depends on their names alone. A test that is named is run.
    """
    named = any("::" in argument for argument in config.args)
    how = config.getoption("--contract")
    if how in ("pairs", "all") or named:
        return
    fewer = 8 if how == "few" else 1
    examples = collections.defaultdict(list)
    for item in items:
        if hasattr(item, "callspec") and _module(item) in SAMPLED:
            examples[item.function].append((zlib.crc32(item.name.encode()), item))
    left_out = set()
    for numbered in examples.values():
        numbered.sort(key=lambda pair: pair[0])
        kept = -(-len(numbered) // (fewer * SAMPLED[_module(numbered[0][1])]))
        left_out |= {item for _, item in numbered[kept:]}
    config.hook.pytest_deselected(items=sorted(left_out, key=lambda i: i.nodeid))
    items[:] = [item for item in items if item not in left_out]


_finished = itertools.count(1)


def pytest_runtest_teardown():
    """Lets go of compiled programs now and then: thousands of them take gigabytes."""
    if next(_finished) % 200 == 0:
        jax.clear_caches()


def _module(item):
    return item.module.__name__.rpartition(".")[2]
