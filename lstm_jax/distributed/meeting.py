"""All processes of a launch come to process 0 before JAX is told of any of them.

JAX's own client ends the process from C++ where a peer does not come in time, a proxy
is in the way or a port is taken, and names none of them. So processes meet here first:
on the port that JAX's coordinator then has, one line of JSON each.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing.connection
import os
import socket
import time
from typing import Any

from lstm_jax.distributed.launchers import LOOPBACK, Launch

_LONGEST = 1 << 20  # Bytes of a line.
_PAUSE = 0.2


class Line:
    """A connection on which each side sends lines of JSON."""

    def __init__(self, connection: socket.socket):
        """Takes a connection that is open."""
        connection.settimeout(5)
        self._socket, self._read = connection, b""
        self.closed = False

    def fileno(self) -> int:
        """What is asked for by whoever waits for several."""
        return self._socket.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message; where no one is there any more, nothing happens."""
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def messages(self, wait: float) -> list[dict[str, Any]]:
        """What has come, at most ``wait`` seconds from now on.

        Raises:
            ValueError: if it is no JSON: something else is at the other end.
        """
        if self.closed or not multiprocessing.connection.wait(
            [self._socket], max(wait, 0)
        ):
            return []
        try:
            received = self._socket.recv(1 << 16)
        except OSError:
            received = b""
        self.closed = not received
        *lines, self._read = (self._read + received).split(b"\n")
        if len(self._read) > _LONGEST:
            raise ValueError("a line without an end")
        return [_parsed(line) for line in lines]

    def close(self) -> None:
        """Closes it."""
        self._socket.close()


class Met:
    """Who has met, and the lines between process 0 and each of the others.

    Attributes:
        names: of the processes, such as "process 1 (node7, pid 4321)".
        lines: from process 0 to each other one, or to process 0 alone.
        host: where process 0 was found; None on process 0 itself.
    """

    def __init__(self, names: list[str], lines: dict[int, Line], host: str | None):
        """Keeps them."""
        self.names, self.lines, self.host = names, lines, host


def meet(launch: Launch, limit: float) -> Met:
    """Waits until every process of a launch is there.

    Raises:
        TimeoutError: if one does not come in time; it says which, or what is in the
            way of this one.
        RuntimeError: if processes contradict each other.
    """
    until = time.monotonic() + limit
    if launch.index == 0:
        return _Host(launch, limit, until).met()
    return _come(launch, limit, until)


def addresses(launch: Launch) -> tuple[str, bool]:
    """Where process 0 listens, as JAX writes it; and whether on this host alone."""
    told = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
    local = all(host in (LOOPBACK, "localhost", "::1") for host in launch.hosts)
    if told:
        return told, False
    everywhere = "[::]" if socket.has_dualstack_ipv6() else "0.0.0.0"
    host = launch.hosts[0] if local else everywhere
    return f"{f'[{host}]' if host == '::1' else host}:{launch.port}", local


def _hello(launch: Launch) -> dict[str, Any]:
    return {
        "lstm_jax": 1,
        "job": launch.job,
        "index": launch.index,
        "count": launch.count,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


class _Host:
    """Process 0, which waits for the others."""

    def __init__(self, launch: Launch, limit: float, until: float):
        self._launch, self._limit, self._until = launch, limit, until
        self._here: dict[int, tuple[Line, dict[str, Any]]] = {}
        self._refused = ""

    def met(self) -> Met:
        """Waits until all are here, and tells them."""
        launch = self._launch
        door = self._listening()
        try:
            while len(self._here) < launch.count - 1:
                self._drop_those_who_left()
                if time.monotonic() > self._until:
                    raise TimeoutError(self._missing())
                if multiprocessing.connection.wait([door], _PAUSE):
                    with contextlib.suppress(OSError, ValueError):
                        self._greet(Line(door.accept()[0]))
        except TimeoutError as error:
            for line, _ in self._here.values():
                line.send({"refused": str(error)})
            raise
        finally:
            door.close()
        hellos = {0: _hello(launch)} | {n: one[1] for n, one in self._here.items()}
        names = [_named(hellos[n]) for n in range(launch.count)]
        lines = {n: one[0] for n, one in self._here.items()}
        for line in lines.values():
            line.send({"names": names})
        return Met(names, lines, None)

    def _listening(self) -> socket.socket:
        address, local = addresses(self._launch)
        host = address.rpartition(":")[0].strip("[]")
        while True:
            try:
                return _door(host, self._launch.port, local)
            except OSError as error:
                if time.monotonic() > self._until:
                    raise TimeoutError(
                        f"process 0 of {self._launch.count}: can't wait for the others "
                        f"on port {self._launch.port} ({self._launch.source}), tried "
                        f"for {self._limit:g} s: {error.strerror}. Is it another "
                        "job's? JAX_COORDINATOR_PORT says another port."
                    ) from error
                time.sleep(_PAUSE)

    def _greet(self, line: Line) -> None:
        """Takes a process in, or refuses it."""
        hello = _first(line, 2.0)
        launch, index = self._launch, hello.get("index")
        if hello.get("lstm_jax") != 1 or not isinstance(index, int):
            return line.close()
        if hello["job"] != launch.job:
            return line.send({"other": launch.job})
        if hello["count"] != launch.count or not 0 < index < launch.count:
            self._refused = (
                f"process 0 was told that there are {launch.count} processes, "
                f"{_named(hello)} that it is {index} of {hello['count']}"
            )
            return line.send({"refused": self._refused})
        if index in self._here:
            self._here[index][0].send(
                {"refused": f"{_named(hello)} says that it is process {index} too"}
            )
        self._here[index] = line, hello

    def _drop_those_who_left(self) -> None:
        for index, (line, _) in [*self._here.items()]:
            with contextlib.suppress(ValueError):
                line.messages(0)
            if line.closed:
                del self._here[index]

    def _missing(self) -> str:
        others = range(1, self._launch.count)
        missing = [str(n) for n in others if n not in self._here]
        said = ", ".join(missing[:20]) + (", ..." if len(missing) > 20 else "")
        return (
            f"process {said} of {self._launch.count} did not come within "
            f"{self._limit:g} s to process 0 on {socket.gethostname()}, port "
            f"{self._launch.port} ({self._launch.source})"
            + (f"; {self._refused}" if self._refused else "")
        )


def _door(host: str, port: int, local: bool) -> socket.socket:
    """A socket that listens; on all addresses unless told otherwise."""
    if host in ("::", "0.0.0.0", ""):
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        return socket.create_server(
            ("", port), family=family, dualstack_ipv6=dual, backlog=1024
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)


def _come(launch: Launch, limit: float, until: float) -> Met:
    """Goes to process 0, which may not be there yet, nor its name."""
    trouble = "not tried"
    while time.monotonic() < until:
        for host in launch.hosts:
            try:
                left = until - time.monotonic()
                address = (host, launch.port)
                line = Line(socket.create_connection(address, min(max(left, 0.1), 5)))
                return _greeted(launch, line, host, until)
            except socket.gaierror as error:
                trouble = f"the name {host} is not known: {error.strerror}"
            except (OSError, ValueError) as error:
                trouble = f"{host} does not answer: {error}"
        time.sleep(_PAUSE)
    raise TimeoutError(
        f"process {launch.index} of {launch.count}: no process 0 at "
        f"{' or '.join(launch.hosts)}, port {launch.port} ({launch.source}), within "
        f"{limit:g} s: {trouble}. JAX_COORDINATOR_ADDRESS=host:port says another place."
    )


def _greeted(launch: Launch, line: Line, host: str, until: float) -> Met:
    line.send(_hello(launch))
    # A little more, in which process 0 says who did not come.
    answer = _first(line, until + 2 - time.monotonic())
    if "other" in answer:
        raise ValueError(f"there is the job {answer['other']!r}, not {launch.job!r}")
    if "refused" in answer:
        raise RuntimeError(f"process {launch.index}: {answer['refused']}.")
    return Met([str(name) for name in answer["names"]], {0: line}, host)


def _first(line: Line, wait: float) -> dict[str, Any]:
    """The first message of a line."""
    until = time.monotonic() + wait
    while not line.closed and time.monotonic() < until:
        for message in line.messages(until - time.monotonic()):
            return message
    raise ValueError("nothing was said" if not line.closed else "it hung up")


def _named(hello: dict[str, Any]) -> str:
    return f"process {hello['index']} ({hello['host']}, pid {hello['pid']})"


def _parsed(line: bytes) -> dict[str, Any]:
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("no process of this library")
    return message
