"""Inference in 8 bits beside float32, and beside other libraries' 8 bits.

``python -m benchmarks.quantized`` runs every case forward, in turn in one process: this
package in float32 and in 8 bits, torch's ``quantize_dynamic`` and onnxruntime's
DynamicQuantizeLSTM, each with as many threads. Beside the times stands how far each is
from float32 in the L2 norm of the outputs; where 8 bits do not pay beside this
package's own float32, the row says so. Outputs of 8 bits are compared, not held to a
limit: the others round a batch by one scale.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import lstm_jax as lj
from benchmarks import report
from benchmarks.cases import CASES, Case, choose
from benchmarks.reference import make_problem
from benchmarks.timing import Times, measure, threads

FLOAT, OURS, TORCH, ONNX = "lstm_jax float32", "lstm_jax", "torch", "onnxruntime"
NEEDS = {TORCH: "torch", ONNX: "onnxruntime"}


def programs(case: Case) -> dict[str, Callable[[], Any]]:
    """For each library a function of nothing: outputs ``[T, B, D*H]``, finished."""
    problem = make_problem(case, "float32")
    model = lj.LSTM(
        case.input_size,
        case.hidden_size,
        case.layers,
        bidirectional=case.bidirectional,
    )
    params = tuple(
        lj.Directions(*(lj.LSTMParams(*map(jax.numpy.asarray, one)) for one in layer))
        for layer in problem.weights
    )
    made = {
        FLOAT: _ours(model, params, problem.xs),
        OURS: _ours(*lj.quantize(model, params), problem.xs),
    }
    builders = {TORCH: _torch, ONNX: _onnxruntime}
    for name, build in builders.items():
        if importlib.util.find_spec(NEEDS[name]) is not None:
            made[name] = build(model, params, problem.xs)
    return made


def _ours(model: Any, params: Any, xs: np.ndarray) -> Callable[[], Any]:
    xs = jax.device_put(xs)
    run = jax.jit(lambda params, xs: model.apply(params, xs, time_major=True)[1])
    compiled: Any = run.lower(params, xs).compile()
    return lambda: jax.block_until_ready(compiled(params, xs))


def _torch(model: Any, params: Any, xs: np.ndarray) -> Callable[[], Any]:
    import torch
    from torch.ao.quantization import quantize_dynamic

    torch.set_num_threads(threads())
    sizes = (model.input_size, model.hidden_size, model.num_layers)
    lstm = torch.nn.LSTM(*sizes, bidirectional=model.bidirectional)
    weights = lj.convert.to_torch(model, params)
    lstm.load_state_dict({k: torch.tensor(np.asarray(v)) for k, v in weights.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao, which is to follow it, has no LSTM
        module = torch.nn.ModuleDict({"lstm": lstm}).eval()
        small: Any = quantize_dynamic(module, {torch.nn.LSTM}, dtype=torch.qint8)
    inputs = torch.from_numpy(xs)

    def run():
        with torch.inference_mode():
            return small["lstm"](inputs)[0]

    return run


def _onnxruntime(model: Any, params: Any, xs: np.ndarray) -> Callable[[], Any]:
    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    with tempfile.TemporaryDirectory() as folder:
        whole, small = (os.path.join(folder, f"{name}.onnx") for name in "ab")
        onnx.save(lj.convert.to_onnx(model, params, time_major=True), whole)
        quantize_dynamic(
            whole, small, op_types_to_quantize=["LSTM"], weight_type=QuantType.QInt8
        )
        kinds = {node.op_type for node in onnx.load(small).graph.node}
        assert "DynamicQuantizeLSTM" in kinds and "LSTM" not in kinds, kinds
        session = onnxruntime.InferenceSession(
            small, options, providers=["CPUExecutionProvider"]
        )
    return lambda: session.run(None, {"xs": xs})[0]


def compare(case: Case, budget_s: float) -> dict[str, Any]:
    """One case: times and errors by library."""
    made = programs(case)
    exact = np.asarray(made[FLOAT](), np.float64)
    errors = {
        name: float(np.linalg.norm(np.asarray(run()) - exact) / np.linalg.norm(exact))
        for name, run in made.items()
    }
    times = measure(made, budget_s)
    return {
        "case": case.name,
        "times": {name: one._asdict() for name, one in times.items()},
        "errors": errors,
        "ratios": {
            name: one.median_ms / times[OURS].median_ms for name, one in times.items()
        },
        "pays": times[FLOAT].median_ms > times[OURS].median_ms,
    }


def show(row: dict[str, Any]) -> str:
    """A row of text."""
    parts = []
    for name, values in row["times"].items():
        one = Times(**values)
        text = f"{name} {one.median_ms:.2f} ({one.min_ms:.2f} to {one.max_ms:.2f}) ms"
        if name != OURS:
            text += f", {row['ratios'][name]:.2f} of ours"
        if name != FLOAT:
            text += f", {row['errors'][name]:.2%} off"
        parts.append(text)
    if not row["pays"]:
        parts.append("8 bits do not pay here")
    return f"{row['case']}: " + "; ".join(parts)


def main() -> None:
    """Measures the cases, prints a row for each, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = [name for name, case in CASES.items() if not case.gpu_only]
    parser.add_argument("--cases", metavar="A,B", default=",".join(known))
    parser.add_argument("--budget", metavar="S", type=float, default=5.0)
    default = pathlib.Path("out/benchmarks/cpu-int8.json")
    parser.add_argument("--out", metavar="PATH", type=pathlib.Path, default=default)
    args = parser.parse_args()
    rows = []
    for name in choose("--cases", args.cases, known):
        rows.append(compare(CASES[name], args.budget))
        print(show(rows[-1]), flush=True)
    for name in (FLOAT, TORCH, ONNX):
        ratios = [row["ratios"][name] for row in rows if name in row["ratios"]]
        if ratios:
            mean = float(np.exp(np.mean(np.log(ratios))))
            print(
                f"{name}: {mean:.2f} times our time in the mean, "
                f"at least {min(ratios):.2f}"
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    table = {"machine": report.machine(), "rows": rows}
    args.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
