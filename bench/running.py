"""A server under load: one program in processes of its own, from its start to its end, and the processor time it takes.

Owns those processes, and ends them whatever happens: even a SIGKILL of this program leaves none. Called by measure.py;
knows nothing about what the server does or how it is loaded.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

BENCH = Path(__file__).resolve().parent
HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0  # 32 fresh interpreters on 2 cores
STOP_TIMEOUT_S = 20.0
LINGER_S = 3.0  # multiprocessing's resource tracker outlives uvicorn's supervisor for a moment
PAUSE_S = 0.01
LAST_WORDS = 4000  # characters of a failed server's standard error that are shown
# Ends the process group that it is told, at the end of its input: when this program is gone, however that came.
GUARD = ("sh", "-c", "read group && { read end; kill -s KILL -- -$group; }")


@dataclass(frozen=True, slots=True)
class Command:
    """How a server is started.

    Attributes:
      ready: how many lines ``ready`` it prints; then, and once its port answers, it is up.
      environment: added to this process's own.
      may_fail: whether it may end with another status than 0 when it is told to end.
    """

    words: Sequence[str]
    ready: int
    environment: Mapping[str, str] = field(default_factory=dict)
    may_fail: bool = False


@dataclass(frozen=True, slots=True)
class Cpu:
    """Seconds of processor time: of the process that was started, and of all that it has started."""

    primary_s: float
    workers_s: float

    def __sub__(self, other: Self) -> Cpu:
        return Cpu(self.primary_s - other.primary_s, self.workers_s - other.workers_s)


class Running:
    """A server that is up."""

    def __init__(self, name: str, port: int, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.port = port
        self._process = process

    def cpu(self) -> Cpu:
        """What it has taken so far. What a process has used that is gone by now is missing."""
        workers_s = 0.0
        for pid in living(self._process.pid):
            if pid != self._process.pid:
                workers_s += cpu_seconds(pid)
        return Cpu(cpu_seconds(self._process.pid), workers_s)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process, all of its threads, those that have ended too; 0 when it is gone.

    The clock of the process knows nanoseconds; /proc/PID/stat knows hundredths of a second, as much as a primary
    takes for some hundred connections.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3)
    except OSError:
        return 0.0


def living(group: int) -> list[int]:
    """The processes of a process group, without those that are dead and only wait to be reaped."""
    pids = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                # The name of the program, in parentheses, may hold anything.
                state, _, its_group, *_ = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(its_group) == group and state != "Z":
                pids.append(int(entry))
    return pids


@contextlib.contextmanager
def running(name: str, port: int, command: Command) -> Iterator[Running]:
    """Run one server; it is gone afterwards, whatever happens.

    Raises:
      RuntimeError: it did not start, did not end in time, ended with an error or left processes behind.
    """
    environment = dict(os.environ)
    environment.pop("PYCLUSTER_SCHED_POLICY", None)
    environment.pop("NODE_CLUSTER_SCHED_POLICY", None)
    # A process group of its own: Ctrl-C comes to this program only, which then ends the server; and none of its
    # processes can be missed. No session of its own: the kernel gives each session an equal part of the processors
    # (sched(7), autogroup), so that a server's many processes together would get no more than the one client does, and
    # what a server has waited for that would be measured instead of what it can do.
    with tempfile.TemporaryFile() as said, _guard() as told:
        try:
            process = subprocess.Popen(
                command.words,
                env={**environment, **command.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                process_group=0,
            )
        except OSError as exception:
            raise RuntimeError(f"the server {name!r} could not be started: {exception}") from None
        os.write(told, b"%d\n" % process.pid)
        problem = "did not get ready"
        try:
            _wait_until_ready(process, name, port, command.ready)
            problem = ""
            yield Running(name, port, process)
            if process.poll() is not None:
                problem = f"ended by itself with {process.returncode}"
        finally:
            problem = _end(process, command.may_fail) or problem
            if problem:
                said.seek(0)
                print(said.read().decode(errors="replace")[-LAST_WORDS:], file=sys.stderr, flush=True)
    if problem:
        raise RuntimeError(f"the server {name!r} {problem}")


@contextlib.contextmanager
def _guard() -> Iterator[int]:
    """A process that outlives this one to end a server. Yields where it is told the server's process group."""
    with subprocess.Popen(GUARD, stdin=subprocess.PIPE, process_group=0) as process:  # not reached by Ctrl-C
        assert process.stdin is not None
        try:
            yield process.stdin.fileno()
        finally:
            process.kill()  # before its input ends: the number of the group may belong to others by now


def _end(process: subprocess.Popen[bytes], may_fail: bool) -> str:
    """End it, and all that it has started. Returns what was wrong."""
    problem = ""
    try:
        process.terminate()
        try:
            if process.wait(STOP_TIMEOUT_S) != 0 and not may_fail:
                problem = f"ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            problem = f"did not end within {STOP_TIMEOUT_S:.0f} s of SIGTERM"
        if not _is_gone_within(process.pid, LINGER_S):
            problem = problem or "left processes behind"
    finally:  # also when a second Ctrl-C cuts the waiting short
        if living(process.pid):
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    return problem


def _is_gone_within(group: int, seconds: float) -> bool:
    """Whether no process of the group is left, soon."""
    end = time.monotonic() + seconds
    while living(group):
        if time.monotonic() > end:
            return False
        time.sleep(PAUSE_S)
    return True


def _wait_until_ready(process: subprocess.Popen[bytes], name: str, port: int, lines: int) -> None:
    assert process.stdout is not None
    heard = b""
    end = time.monotonic() + START_TIMEOUT_S
    while heard.count(b"ready\n") < lines:
        readable, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
        part = os.read(process.stdout.fileno(), 4096) if readable else b""
        if not part:
            what = "ended" if readable else f"was not ready within {START_TIMEOUT_S:.0f} s"
            raise RuntimeError(f"the server {name!r} {what}; it said {heard!r}")
        heard += part
    while True:  # an app is ready a moment before its server listens
        try:
            socket.create_connection((HOST, port), timeout=5).close()
            return
        except OSError as exception:
            if time.monotonic() > end:
                raise RuntimeError(f"the server {name!r} does not listen on {port}: {exception}") from None
            time.sleep(PAUSE_S)


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses. Held together, so that they differ; another program may still be quicker."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [int(probe.getsockname()[1]) for probe in probes]
