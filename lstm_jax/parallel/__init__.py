"""Cells in parallel over time: the public function, Newton's method, affine scans."""

from lstm_jax.parallel.scan import ParallelReport as ParallelReport
from lstm_jax.parallel.scan import parallel_scan as parallel_scan
