"""A cluster on strings, as a test holds them: see programs/puppet.py for what its processes can do."""

import contextlib
import itertools
import json
import os
import pathlib
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from harness import (
    PATIENCE_S,
    Fact,
    Program,
    Programs,
    connect,
    connect_to,
    free_port,
    read_all,
    request,
    wait_until,
)

Start = Callable[..., "Puppets"]


class Puppets:
    """A running cluster. `do` what you want of its processes, by worker's id; 0 is the primary."""

    def __init__(self, program: Program, control: socket.socket) -> None:
        self.program = program
        self._control = control
        self._numbers = itertools.count(1)
        self._who: dict[int, int] = {}

    def _wait_for(self, found: Callable[[], list[Fact]], who: int) -> Fact:
        """The first of the facts that are found, waited for as long as whoever is to tell them lives."""

        def ended() -> bool:
            return self.program.process.poll() is not None or bool(self.program.facts_of("exit", worker=who))

        wait_until(lambda: found() or ended())
        assert wait_until(found, 0.1), f"waited in vain for {who}\n{self.program}"
        return found()[0]

    def begin(self, who: int, what: str, **arguments: Any) -> int:
        """Tell somebody to do something. Returns a number to ask `result` for."""
        seq = next(self._numbers)
        self._who[seq] = who
        command = {"seq": seq, "who": who, "what": what, "arguments": arguments}
        self._control.sendall(json.dumps(command).encode() + b"\n")
        return seq

    def result(self, seq: int) -> Any:
        """Wait until it is done.

        Raises:
          OSError: as it was raised there.
          RuntimeError: another exception was.
        """

        def ended() -> list[Fact]:
            return self.program.facts_of("done", seq=seq) + self.program.facts_of("failed", seq=seq)

        fact = self._wait_for(ended, self._who[seq])
        if fact["event"] == "done":
            return fact["result"]
        if fact["type"] == "TimeoutError":
            raise TimeoutError(fact["text"])
        if fact["errno"] is not None:
            raise OSError(fact["errno"], fact["text"])
        raise RuntimeError(f"{fact['type']}: {fact['text']}")

    def do(self, who: int, what: str, **arguments: Any) -> Any:
        """Tell somebody to do something, and wait until it is done."""
        return self.result(self.begin(who, what, **arguments))

    def fork(self, count: int = 1) -> list[int]:
        """New workers, ready to do something. Returns their ids."""
        ids: list[int] = self.do(0, "fork", count=count)
        for worker in ids:
            self._wait_for(lambda worker=worker: self.program.facts_of("ready", worker=worker), worker)  # type: ignore[misc]
        return ids

    def pid(self, worker: int) -> int:
        """The process id of a worker."""
        pid = self.program.wait_for("online", worker=worker)["worker_pid"]
        assert isinstance(pid, int)
        return pid

    def serve(self, kind: str, where: int | str, *workers: int) -> None:
        """Let workers run one of servers.py, unix_servers.py or udp_servers.py; returns when all listen."""
        for worker in workers:
            self.begin(worker, "serve", kind=kind, where=where)
        for worker in workers:
            self.wait_for_listening(worker)

    def wait_for_listening(self, worker: int) -> None:
        """Wait until a worker listens."""
        self._wait_for(lambda: self.program.facts_of("listening", worker=worker), worker)

    def pass_over(self, worker: int, other: int) -> None:
        """Let both listen on a port, and the other one accept two connections, of which the worker was given the first.

        What the balancer then waits for, a probe, lies in the worker's channel.
        """
        port = free_port()
        for each in (worker, other):
            self.do(each, "listen", port=port)
        with connect(port), connect(port):
            for _ in range(2):
                self.do(other, "accept")

    def wait_for_exit(self, worker: int) -> tuple[int | None, str | None]:
        """How a worker has ended."""
        fact = self.program.wait_for("exit", worker=worker)
        return fact["code"], fact["signal"]

    def shares(self, take_turns: Callable[[], list[int]], *workers: int) -> list[int]:
        """How many turns each worker has had.

        A worker that the machine keeps from the processor for 50 ms is passed over for a while. Uneven shares say
        nothing then, and are measured again.

        Args:
          take_turns: returns whose turn it was, one after the other.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            turns = take_turns()
            shares = [turns.count(worker) for worker in workers]
            if max(shares) == min(shares) or self._taken_back == 0 or time.monotonic() > deadline:
                return shares

    @property
    def _taken_back(self) -> int:
        """How many connections the balancer has taken from a worker that seemed to be blocked."""
        figures: dict[str, int] = self.do(0, "figures")
        return figures["taken_back"]


@contextlib.contextmanager
def puppets(
    programs: Programs,
    directory: pathlib.Path,
    workers: int = 2,
    *,
    env: Mapping[str, str] | None = None,
    expects_traceback: bool = False,
    **settings: Any,
) -> Iterator[Puppets]:
    """Start a cluster with so many workers; in the end they are killed."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "control"))
        listener.listen()
        listener.settimeout(PATIENCE_S)
        program = programs(
            "puppet", directory / "control", json.dumps(settings), env=env, expects_traceback=expects_traceback
        )
        control, _ = listener.accept()
    with control:
        puppets = Puppets(program, control)
        if workers:
            puppets.fork(workers)
        yield puppets
    assert program.finish().returncode == 0


def who_answers_at(path: str) -> int:
    """The id of the worker that answers a new connection to a Unix socket."""
    with connect_to(path) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return worker_in(read_all(client))


def who_answers(port: int, host: str = "127.0.0.1") -> int:
    """The id of the worker that answers a new connection."""
    return worker_in(request(port, b"GET / HTTP/1.0\r\n\r\n", host=host))


def worker_in(answer: bytes) -> int:
    """The id in a worker's answer."""
    found = re.search(rb"worker (\d+)\s*$", answer)
    assert found, answer
    return int(found[1])


def cpu_s(pid: int) -> float:
    """The time that all threads of a process have had a processor."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def refuses(function: Callable[[], object]) -> bool:
    """Whether a connection is refused."""
    try:
        function()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # it was closed with this connection in its backlog
    return False
