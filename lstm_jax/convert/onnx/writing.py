"""A stack as an ONNX file."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.quantized import QuantizedLSTMCell
from lstm_jax.checks import border, options
from lstm_jax.convert import targets
from lstm_jax.convert.onnx import library
from lstm_jax.convert.onnx.drawing import Drawing
from lstm_jax.convert.onnx.operators import Layers
from lstm_jax.layers import LSTM, Params
from lstm_jax.stack import Stack

if TYPE_CHECKING:
    import onnx

ONNX = targets.Target(
    "ONNX",
    options={
        "peephole": True,
        "variant": ("CIFG", "NIAF", "NOAF"),
        "gate_activation": True,
        "candidate_activation": True,
        "output_activation": True,
        "clip": True,
        "learn_initial_state": True,
        "reverse": True,
        "residual": True,
        "skip": True,
    },
    merges=("concat", "sum", "mean", "mul"),
    whole_cells=(QuantizedLSTMCell,),
)
_OLDEST = 14
# What protobuf can hold in one message, less some for all that is not weights.
_LARGEST = 2**31 - 2**20


def to_onnx(
    model: LSTM | Stack,
    params: Params,
    embedding: Any = None,
    readout: Any = None,
    *,
    lengths: bool = False,
    states: bool = False,
    step: bool = False,
    time_major: bool = False,
    opset: int = 18,
) -> onnx.ModelProto:
    """Writes a stack as an ONNX model: each layer one of ONNX's own LSTM operators.

    The file computes what ``model.apply`` does without a key, for any batch and number
    of steps, in float32: parameters in half precision are widened, which is exact, and
    so is what is computed. Parameters in float64 stay so, with a warning, since
    onnxruntime has no such LSTM for the CPU. Layers in 8 bits (:func:`quantize`) are
    ordinary operators over a Scan, which compute the same within rounding. Write it
    with ``onnx.save(model, path)``.

    Shapes:
        inputs: ``xs [B, T, I]`` (``[T, B, I]`` if ``time_major``), or ``ids [B, T]``
        int32 with an embedding; ``lengths [B]`` int32 on request.
        output: ``ys``, with the same leading axes.
        with ``states``: for each layer and direction, the inputs ``h_0_l0 [B, H]`` and
        ``c_0_l0``, the outputs ``h_n_l0`` and ``c_n_l0``, and so on for ``_l1``,
        ``_l0_reverse``, as PyTorch numbers its weights. An input that is not fed is
        zeros, or what the model has learned to start from.
        with ``step``: ``x [B, I]`` (``id [B]``) and ``y``, without time.

    Args:
        model: the stack.
        params: its parameters.
        embedding: a table ``[V, I]``; the file then takes the numbers of its rows.
        readout: ``(kernel [P, V], bias [V])``, or a kernel alone: what the outputs are
            multiplied with, and what is added.
        lengths: whether the number of valid steps of each row is an input, as
            ``lengths`` of :meth:`LSTM.apply`: outputs after them are zeros (the
            readout's bias, with one), and a row of length 0 hands its initial state on.
        states: whether states are inputs and outputs.
        step: whether the file takes one step, with states, to serve streams.
        time_major: whether the first axis is time.
        opset: the version of ONNX's operators, 14 or later.

    Returns:
        The model. Attributes that are ONNX's defaults are left out.

    Raises:
        ValueError: if the model has something that ONNX cannot say, by name;
            ``params`` are not its own; a shape or option does not fit; or the file
            would be larger than 2 GB.
        TypeError: if ``model`` is no stack, or an array no floating one.
        ImportError: if ``onnx`` is not installed.

    Example:
        >>> import jax, lstm_jax as lj
        >>> from lstm_jax.convert.onnx import to_onnx
        >>> model = lj.LSTM(3, 5)
        >>> params = model.init(jax.random.key(0))
        >>> file = to_onnx(model, params, states=True)
        >>> [one.name for one in file.graph.input]
        ['xs', 'h_0_l0', 'c_0_l0']
        >>> [one.name for one in file.graph.output]
        ['ys', 'h_n_l0', 'c_n_l0']
    """
    library.load("to_onnx")
    targets.check(ONNX, model, params)
    _check_options(model, lengths, step, time_major, opset)
    params = jax.tree.map(np.asarray, model.check_params(params))
    table = _take_table(embedding, _input_size(model))
    kernel, bias = _take_readout(readout, model.output_size)
    beside = [array for array in (table, kernel, bias) if array is not None]
    drawing = Drawing(_dtype([*jax.tree.leaves(params), *beside]), opset)
    xs = _draw_inputs(drawing, model, table, step, time_major)
    layers = Layers(drawing, model, states=states or step, lengths=lengths)
    ys = layers.draw(params, xs)
    if kernel is not None:
        ys = drawing.node("MatMul", [ys, drawing.weights("readout", kernel)], "product")
    if bias is not None:
        ys = drawing.node("Add", [ys, drawing.weights("readout_bias", bias)], "sum")
    features = model.output_size if kernel is None else kernel.shape[1]
    _draw_output(drawing, ys, features, step, time_major)
    layers.draw_states()
    return drawing.finish("step" if step else "sequence", f"What {model!r} computes.")


def _check_options(
    model: Any, lengths: bool, step: bool, time_major: bool, opset: int
) -> None:
    import onnx.defs

    newest = onnx.defs.onnx_opset_version()
    if not isinstance(opset, int) or not _OLDEST <= opset <= newest:
        raise ValueError(
            f"opset: expected a version from {_OLDEST} to {newest}, the newest that "
            f"the installed onnx knows, got {opset!r}."
        )
    if step:
        options.check_forward("step", model)
    for name, value in (("lengths", lengths), ("time_major", time_major)):
        if step and value:
            raise ValueError(
                f"{name}: expected False with step=True, which has no time, got "
                f"{value}."
            )


def _take_table(embedding: Any, size: int) -> np.ndarray | None:
    if embedding is None:
        return None
    return _take("embedding", embedding, "[V, I]", (None, size))


def _input_size(model: Any) -> int:
    return model.cells[0].input_size


def _take_readout(
    readout: Any, size: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The kernel and the bias of a readout."""
    kernel, bias = readout, None
    if isinstance(readout, (tuple, list)):
        if len(readout) != 2:
            raise ValueError(
                f"readout: expected (kernel, bias) or a kernel, got {len(readout)} "
                "values."
            )
        kernel, bias = readout
    if kernel is None:
        return None, None
    kernel = _take("readout", kernel, "[P, V]", (size, None))
    if bias is not None:
        bias = _take("readout: bias", bias, "[V]", (kernel.shape[1],))
    return kernel, bias


def _take(
    name: str, value: Any, letters: str, shape: tuple[int | None, ...]
) -> np.ndarray:
    """A floating array of a shape, in which None is any size."""
    array = np.asarray(border.take(name, value))
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name}: expected a floating dtype, got {array.dtype}.")
    fits = array.ndim == len(shape) and all(
        wanted in (None, got) for wanted, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        hint = ""
        if array.shape[::-1][: len(shape)] and array.ndim == 2 == len(shape):
            flipped = zip(shape, array.shape[::-1], strict=True)
            if all(wanted in (None, got) for wanted, got in flipped):
                hint = " It is transposed."
        raise ValueError(
            f"{name}: expected shape {letters} = [{sizes}], got {list(array.shape)}."
            f"{hint}"
        )
    return array


def _dtype(arrays: list[np.ndarray]) -> Any:
    """What the file is written in: float32, unless an array is wider."""
    dtype = np.float32
    if any(array.dtype == np.float64 for array in arrays):
        dtype = np.float64
        warnings.warn(
            "params: they are float64, of which onnxruntime has no LSTM for the CPU: "
            "it loads such a file and can't run it. jax.tree.map(lambda w: "
            "w.astype('float32'), params) makes them float32.",
            stacklevel=3,
        )
    size = sum(array.size for array in arrays) * np.dtype(dtype).itemsize
    if size > _LARGEST:
        raise ValueError(
            f"params: expected less than 2 GB, the most that one ONNX file holds, got "
            f"{size / 2**30:.1f} GB."
        )
    return dtype


def _draw_inputs(
    drawing: Drawing, model: Any, table: Any, step: bool, time_major: bool
) -> str:
    """What comes in, as ``[T, B, I]``."""
    axes = ["batch"] if step else ["batch", "time"]
    if time_major:
        axes = ["time", "batch"]
    if table is None:
        name = drawing.input("x" if step else "xs", [*axes, _input_size(model)])
    else:
        ids = drawing.input("id" if step else "ids", axes, np.int32)
        table = drawing.weights("embedding", table)
        name = drawing.node("Gather", [table, ids], "embedded")
    if step:
        return drawing.node("Unsqueeze", [name, drawing.integers(0)], "x_in_time")
    if time_major:
        return name
    return drawing.node("Transpose", [name], "time_major_xs", perm=[1, 0, 2])


def _draw_output(
    drawing: Drawing, ys: str, features: int, step: bool, time_major: bool
) -> None:
    """What goes out, of ``[T, B, P]``."""
    if step:
        drawing.node("Squeeze", [ys, drawing.integers(0)], "y")
        drawing.output("y", ["batch", features])
    elif time_major:
        drawing.node("Identity", [ys], "ys")
        drawing.output("ys", ["time", "batch", features])
    else:
        drawing.node("Transpose", [ys], "ys", perm=[1, 0, 2])
        drawing.output("ys", ["batch", "time", features])
