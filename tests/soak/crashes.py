"""Promise: a worker that is killed loses no connection that it has not accepted.

Workers (programs/logged.py) log each connection before they handle it. They are killed with SIGKILL at random moments
of their lives, from their start on, under load. A connection that fails is lost if no worker has logged it. Between
accept and the log nobody can tell, so a worker is stopped first, which takes effect where a kill would, and goes on if
it is just there.
"""

import collections
import contextlib
import mmap
import os
import pathlib
import random
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from harness import PROGRAMS, Program, free_port, is_listening, is_stopped, wait_until
from programs.logged import RECORD
from soak.row import Row, show

WORKERS_EVER = 1 << 16
CLIENT_PATIENCE_S = 20.0
PAUSE_S = 0.01  # at most, between two kills


@dataclass
class Storm:
    """What has come of it.

    Attributes:
      lost: connections that failed and that no worker has accepted.
      cut: connections that failed with the worker that had accepted them.
    """

    kills: int = 0
    answered: int = 0
    cut: int = 0
    lost: int = 0
    kinds: collections.Counter[str] = field(default_factory=collections.Counter)


class Clients:
    """Threads that make a connection per request, and remember from where."""

    def __init__(self, port: int, threads: int) -> None:
        self.answered = 0
        self.uses: collections.Counter[bytes] = collections.Counter()
        self.failures: list[tuple[bytes, str]] = []
        self._port = port
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def _ask(self) -> None:
        while not self._stop.is_set():
            key, failure = b"", ""
            try:
                with socket.create_connection(("127.0.0.1", self._port), CLIENT_PATIENCE_S) as client:
                    host, port = client.getsockname()
                    key = RECORD.pack(bytes(map(int, host.split("."))), port)
                    client.sendall(b"x")
                    if client.recv(100) != b"answered":
                        failure = "end of file"
            except OSError as error:
                failure = type(error).__name__
            with self._lock:
                self.uses[key] += 1
                if failure:
                    self.failures.append((key, failure))
                else:
                    self.answered += 1

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def storm(kills: int, workers: int, clients: int = 8, seed: int = 0) -> Storm:
    """Kill so many times one of so many workers, and count."""
    result = Storm()
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pycluster-soak-")))
        log, flags = directory / "log", directory / "accepting"
        log.touch()
        flags.write_bytes(bytes(WORKERS_EVER))
        port = free_port()
        program = Program(PROGRAMS / "logged.py", str(workers), str(port), str(log), str(flags))
        stack.callback(program.close)
        assert wait_until(lambda: is_listening(port))
        with flags.open("rb") as file:
            accepting = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        with Clients(port, clients) as load:
            _kill(program, accepting, kills, random.Random(seed))
            result.kills = kills
            answered = load.answered
            assert wait_until(lambda: load.answered > answered + 20), f"nobody answers any more\n{program}"
        program.send_signal(signal.SIGTERM)
        program.finish()
        records = log.read_bytes()
        logged = collections.Counter(records[i : i + RECORD.size] for i in range(0, len(records), RECORD.size))
        result.answered = load.answered
        for key in {key for key, _ in load.failures}:
            result.lost += max(0, load.uses[key] - logged[key])
        result.cut = len(load.failures) - result.lost
        result.kinds.update(kind for _, kind in load.failures)
    return result


def _kill(program: Program, accepting: mmap.mmap, kills: int, chance: random.Random) -> None:
    workers = _workers(program)
    for _ in range(kills):
        while True:
            time.sleep(chance.random() * PAUSE_S)
            living = next(workers)
            if not living:
                continue
            number = chance.choice(list(living))
            try:
                os.kill(living[number], signal.SIGSTOP)
                if not wait_until(lambda pid=living[number]: is_stopped(pid)):  # type: ignore[misc]
                    continue
            except (ProcessLookupError, FileNotFoundError):
                continue
            if not accepting[number]:
                break
            os.kill(living[number], signal.SIGCONT)
        os.kill(living[number], signal.SIGKILL)
        program.wait_for("exit", worker=number)


def _workers(program: Program) -> Iterator[dict[int, int]]:
    """The living workers' pids by their ids, as of each next()."""
    living: dict[int, int] = {}
    seen = 0
    while True:
        facts = program.facts
        for fact in facts[seen:]:
            if fact["event"] == "fork":
                living[fact["worker"]] = fact["worker_pid"]
            elif fact["event"] == "exit":
                living.pop(fact["worker"], None)
        seen = len(facts)
        yield living


def main() -> None:
    """1 800 kills of one among four workers, and 250 of the only one."""
    rows = []
    for kills, workers in ((1800, 4), (250, 1)):
        result = storm(kills, workers)
        who = "one of four workers" if workers > 1 else "the only worker, which is replaced"
        rows.append(
            Row(
                "a worker that is killed loses only what it has accepted",
                f"{result.kills} × SIGKILL of {who}, 8 clients",
                f"{result.lost} of {result.answered + result.cut} connections lost "
                f"({result.cut} that a worker had accepted were cut)",
                result.lost == 0,
            )
        )
    show(*rows)


if __name__ == "__main__":
    main()
