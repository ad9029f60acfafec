"""What every test runs under: strict promotion, four CPU devices."""

import jax

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")


def pytest_addoption(parser):
    parser.addoption(
        "--contract",
        choices=("sample", "all"),
        default="sample",
        help="how much of tests/contract runs: a sample that has every cell, "
        "implementation, dtype and check, or every combination",
    )
