"""Models to and from ONNX files.

``to_onnx`` writes a stack as ONNX's own ``LSTM`` operators, ``from_onnx`` takes over
the LSTMs of any file. Where those who run such files differ:

- *A sequence of length 0.* The specification leaves it open. onnxruntime puts out zeros
  as the last states, even where it is given initial ones. Files of ``to_onnx`` hand the
  initial state on, as this library does, whoever runs them.
- *clip.* The specification has it limit what enters each activation, c on its way to
  the output among them. onnxruntime limits what enters the gates and the candidate
  alone, and so do :class:`LSTMCell` and both functions here. ``cell_clip`` is another
  thing, which ONNX can't say.
- *layout.* onnxruntime refuses 1 (batch first), others ignore it; it is read, and never
  written.
- *Attributes.* Some runtimes ignore ``activations``, ``clip`` and ``input_forget``, and
  ONNX's own reference evaluator did so as late as version 1.23, and lengths too. A file
  of a standard cell has none of the three.
- *Nothing at all.* onnxruntime 1.32 ends the process where a batch has no rows. Where
  it has no steps, the last states are initial ones with ``lengths=True`` alone.
"""

from lstm_jax.convert.onnx.reading import from_onnx as from_onnx
from lstm_jax.convert.onnx.writing import ONNX as ONNX
from lstm_jax.convert.onnx.writing import to_onnx as to_onnx

__all__ = ("ONNX", "from_onnx", "to_onnx")
