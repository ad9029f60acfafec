"""Readers of broken files by the thousand, and how files are broken.

A reader is forked from a process that has imported all it needs: what it runs, under
the same limits, is what :func:`lstm_jax.convert.files.hdf5.start` starts.
"""

import json
import os
import socket
import subprocess
import sys

from lstm_jax.convert.files import hdf5_child

SECONDS = 10

_SERVER = """
import importlib.util, json, os, socket, sys
place, number = sys.argv[1], int(sys.argv[2])
sys.path[:] = json.loads(sys.argv[3])
spec = importlib.util.spec_from_file_location("hdf5_child", place)
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
import h5py, numpy
door = socket.socket(fileno=number)
while True:
    text, fds, _, _ = socket.recv_fds(door, 4096, 2)
    if not text:
        break
    asked = json.loads(text)
    pid = os.fork()
    if not pid:
        door.close()
        with os.fdopen(fds[0], "rb") as ins, os.fdopen(fds[1], "wb") as outs:
            try:
                child.serve(asked["file"], asked["seconds"], ins, outs)
            except BrokenPipeError:
                os._exit(0)
        os._exit(0)
    for fd in fds:
        os.close(fd)
    door.sendall(b"%d\\n" % pid)
    _, status, usage = os.wait4(pid, 0)
    report = [os.waitstatus_to_exitcode(status), usage.ru_maxrss]
    door.sendall(json.dumps(report).encode() + b"\\n")
"""


class Server:
    """Starts readers by fork, and counts what became of them."""

    def __init__(self):
        self.door, theirs = socket.socketpair()
        self.answers = self.door.makefile("rb")
        places = json.dumps([place for place in sys.path if place])
        command = [sys.executable, "-I", "-S", "-c", _SERVER, hdf5_child.__file__]
        self.process = subprocess.Popen(
            [*command, str(theirs.fileno()), places],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1"},
        )
        theirs.close()
        self.ends, self.most = {}, 0

    def start(self, path, seconds):
        ins, mine = os.pipe()
        yours, outs = os.pipe()
        asked = json.dumps({"file": path, "seconds": seconds}).encode()
        socket.send_fds(self.door, [asked], [ins, outs])
        os.close(ins)
        os.close(outs)
        pid = json.loads(self.answers.readline())
        return Reader(self, pid, os.fdopen(mine, "wb"), os.fdopen(yours, "rb"))

    def close(self):
        self.answers.close()
        self.door.close()
        self.process.wait(10)


class Reader:
    """One reader, as :class:`subprocess.Popen` has it."""

    def __init__(self, server, pid, stdin, stdout):
        self.server, self.pid = server, pid
        self.stdin, self.stdout, self.returncode = stdin, stdout, None
        self.killed = False

    def kill(self):
        if self.returncode is None:
            self.killed = True
            try:
                os.kill(self.pid, 9)
            except ProcessLookupError:
                self.killed = False

    def wait(self):
        if self.returncode is None:
            self.returncode, size = json.loads(self.server.answers.readline())
            if not self.killed:
                ends = self.server.ends
                ends[self.returncode] = ends.get(self.returncode, 0) + 1
            self.server.most = max(self.server.most, size / 1024)


def mutated(data, rng):
    """Some bytes changed, cut, doubled or put in; numbers made extreme."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at, kind = rng.randrange(len(data) or 1), rng.randrange(7)
        size = rng.choice([1, 2, 4, 8])
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            extreme = rng.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * size
            data[at : at + size] = extreme
        elif kind == 3:
            del data[at : at + rng.choice([1, 8, 64, 1024])]
        elif kind == 4:
            data[at:at] = data[at : at + rng.choice([1, 8, 64])]
        elif kind == 5 and rng.random() < 0.3:
            del data[at:]
        else:
            other = rng.randrange(len(data) or 1)
            data[at : at + size] = data[other : other + size]
    return bytes(data)
