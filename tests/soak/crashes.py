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
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from harness import PROGRAMS, Program, connect, free_port, is_listening, is_stopped, wait_until
from load import Load, once
from programs.logged import RECORD
from soak.row import Row, show

WORKERS_EVER = 1 << 16
CLIENT_PATIENCE_S = 20.0
PAUSE_S = 0.04  # at most, between two kills, for each worker: so long most of them live, and serve


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


class Cut(OSError):
    """A connection that failed.

    Attributes:
      key: where it came from, as the workers log it; empty if it was not made.
    """

    def __init__(self, key: bytes, why: str) -> None:
        super().__init__(why)
        self.key = key


def ask(port: int) -> bytes:
    """Make a connection, and be answered. Returns where it came from, as the workers log it."""
    key = b""
    try:
        with connect(port, timeout=CLIENT_PATIENCE_S) as client:
            host, own_port = client.getsockname()
            key = RECORD.pack(bytes(map(int, host.split("."))), own_port)
            client.sendall(b"x")
            if client.recv(100) != b"answered":
                raise EOFError
    except (OSError, EOFError) as error:
        raise Cut(key, type(error).__name__) from error
    return key


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
        with Load([once(lambda: ask(port))] * clients) as load:
            _kill(program, accepting, kills, random.Random(seed), PAUSE_S / workers)
            result.kills = kills
            answered = len(load.answered)
            assert wait_until(lambda: len(load.answered) > answered + 20), f"nobody answers any more\n{program}"
        program.send_signal(signal.SIGTERM)
        program.finish()
        records = log.read_bytes()
        logged = collections.Counter(records[i : i + RECORD.size] for i in range(0, len(records), RECORD.size))
        failures = [failure for failure in load.failures if isinstance(failure, Cut)]
        assert failures == load.failures
        result.answered = len(load.answered)
        uses = collections.Counter([*load.answers, *(failure.key for failure in failures)])
        for key in {failure.key for failure in failures}:
            result.lost += max(0, uses[key] - logged[key])
        result.cut = len(failures) - result.lost
        result.kinds.update(map(str, failures))
    return result


def _kill(program: Program, accepting: mmap.mmap, kills: int, chance: random.Random, pause_s: float) -> None:
    workers = _workers(program)
    for _ in range(kills):
        while True:
            time.sleep(chance.random() * pause_s)
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
