"""Kills runs of training at moments of no one's choosing, and resumes them.

    python tests/chaos.py                     # 20 kills of each run, some minutes
    python tests/chaos.py --kills 3 early     # fewer, of one run

Each is a program that trains with checkpoints. It is run once without interruption.
Then it is killed by SIGKILL, a third of the times in the middle of a save and else at
moments uniform in wall time, and gone on with until it ends. Every leaf of the last
checkpoint and every row of metrics.csv but for its times must be bit for bit what the
first run left.
"""

import argparse
import csv
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from tests import pipelines

ROOT = pathlib.Path(__file__).parents[1]
TIMES = {"seconds", "steps_per_second", "tokens_per_second", "share_of_peak"}
SMALL = """
import pathlib, sys, time, warnings
from lstm_jax import training
from tests import pipelines, runs

def slow(batches):
    def of_epoch(epoch):
        for batch in batches(epoch):
            time.sleep(0.01)
            yield batch
    of_epoch.continues = getattr(batches, "continues", False)
    return of_epoch

kind, out, resume = sys.argv[1], pathlib.Path(sys.argv[2]), "--resume" in sys.argv
if kind in pipelines.PIPELINES:
    # Saves fall on the ends of epochs, of ten batches or so, and beside them.
    pipelines.run(kind, out, slow, epochs=25, save_every=5, resume=resume)
    sys.exit()
options = {
    # Patience ends it: the validation loss stands still from some step on.
    "early": dict(steps=10**6, evaluate_every=10, patience=12, min_delta=1e-4,
                  plateau=training.Plateau(0.5, 3)),
    # Saves and evaluations fall on the ends of epochs and beside them.
    "epochs": dict(epochs=9, patience=100, log_every=3),
}[kind]
runs.run(out, slow(runs.batches(17)), runs.state(ema=True), ema_decay=0.9,
         clip_norm=1.0, valid=runs.VALID, save_every=None if kind == "epochs" else 5,
         resume=resume, **options)
"""
CHAR_LM = (
    "--steps 300 --save-every 25 --sample-every 100 --log-every 20 --hidden-size 128 "
    "--window 32 --length 20 --dropout 0.1 --seed 3"
)


def command(kind, out):
    if kind == "char_lm":
        args = [ROOT / "examples/char_lm.py", *CHAR_LM.split(), "--out", out]
    else:
        args = ["-c", SMALL, kind, out]
    return [sys.executable, *map(str, args)]


def launch(kind, out):
    resume = ["--resume"] if list(out.glob("checkpoints/step_*")) else []
    return subprocess.Popen(
        [*command(kind, out), *resume],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def left(out):
    """The digest of every leaf of the last checkpoint, and the rows."""
    last = max(out.glob("checkpoints/step_*"), key=lambda path: int(path.name[5:]))
    manifest = json.loads((last / "manifest.json").read_text())
    with (out / "metrics.csv").open() as file:
        rows = [
            {name: value for name, value in row.items() if name not in TIMES}
            for row in csv.DictReader(file)
        ]
    return {"step": last.name, "leaves": manifest["leaves"], "rows": rows}


def finish(process):
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"chaos: status {process.returncode}: {errors}")


def kill(process, out, moment, in_save):
    """Kills at a moment, or at the next save after it; returns whether it was alive."""
    started = time.perf_counter()
    saves = lambda: any(out.glob("checkpoints/writing_*"))
    while process.poll() is None:
        if time.perf_counter() - started >= moment and (not in_save or saves()):
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return process.returncode == -signal.SIGKILL
        time.sleep(0.001)
    return False


def torment(kind, folder, kills, rng, say=print):
    """Raises AssertionError where a run that was killed did not go on as it was."""
    before = time.perf_counter()
    finish(launch(kind, folder / "whole"))
    whole, lasted = left(folder / "whole"), time.perf_counter() - before
    say(f"{kind}: {lasted:.1f} s, {len(whole['rows'])} rows, {whole['step']}")
    done, run = 0, 0
    while done < kills:
        out = folder / f"killed_{run}"
        run += 1
        while True:
            process = launch(kind, out)
            moment = rng.uniform(0, lasted * 0.6)
            if done >= kills or not kill(process, out, moment, done % 3 == 2):
                break
            done += 1
        finish(process)
        assert left(out) == whole, f"{kind}: {out} is not what an unbroken run left"
        say(f"{kind}: equal after {done} kills in {run} runs")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    kinds = ("char_lm", "early", "epochs", *pipelines.PIPELINES)
    parser.add_argument("kinds", nargs="*", metavar="run", help=", ".join(kinds))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for kind in options.kinds or kinds:
        with tempfile.TemporaryDirectory() as folder:
            rng = random.Random(options.seed)
            torment(kind, pathlib.Path(folder), options.kills, rng)


if __name__ == "__main__":
    main()
