"""The loops that accelerators are given, run on a CPU.

Blocks of three steps, so that a short sequence has several and a rest.
"""

from lstm_jax.cells.lstm_cell import LSTMCell
from lstm_jax.recurrence import xla
from lstm_jax.recurrence.contract import Target

STEPS = 3


class TPULoops(xla.Reference):
    """Every cell, as lowered for one TPU; what is saved is no tape."""

    name = "tpu_loops"
    target = Target("tpu")

    def arrangement(self, target):
        # Half precision as on a CPU: what an accelerator rounds at each step is not the
        # loops' doing.
        how = xla.arrangement(self.target)
        return how._replace(differentiated=STEPS, widen=True)


class GPULoops(TPULoops):
    """Standard cells, as lowered for a batch over two GPUs; what is saved is a tape."""

    name = "gpu_loops"
    target = Target("cuda", devices=2)
    taped = True

    def why_not(self, cell, dtype):
        if isinstance(cell, LSTMCell) and cell.standard:
            return None
        return f"runs standard cells only, not {cell}"
