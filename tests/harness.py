"""Whole programs under test: started as a user starts them, watched by what they print, and ended without a rest.

A program is a file in tests/programs. It prints facts, one JSON object a line (programs/facts.py), and a test waits for
facts and asserts on them. Nothing here sleeps for luck: every wait is for something, and bounded.
"""

import contextlib
import errno
import json
import os
import pathlib
import random
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple

from programs.listening import listening_rows

TESTS = pathlib.Path(__file__).resolve().parent
PROGRAMS = TESTS / "programs"
SHARED_MEMORY = pathlib.Path("/dev/shm")
# For what takes milliseconds. A noisy machine with two cores may take seconds; a broken program takes for ever.
PATIENCE_S = 15.0
# api.md: workers are gone within 1 s after the primary. The rest is for the machine.
GONE_S = 3.0
# A case of a program of cases may start many processes, and wait for its own limits.
CASE_S = 45.0
# A worker that ends gives a connection that it has just accepted so long, or twice, to say its request. A client that
# the machine keeps from the processor for longer may find it closed.
SAYS_WITHIN_S = 0.1
UNDISTURBED_TRIES = 10

Fact = dict[str, Any]
Case = Callable[..., Fact]


class Ended(NamedTuple):
    """A program that has ended, and all that it has said."""

    returncode: int
    facts: list[Fact]
    stderr: str


class Program:
    """A running program: the leader of a session and a process group of its own.

    Attributes:
      expects_traceback: whether tracebacks on its stderr are part of the test.
    """

    def __init__(
        self,
        *argv: str | os.PathLike[str],
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdin: str | None = None,
        terminal: bool = False,
        expects_traceback: bool = False,
    ) -> None:
        """Start the interpreter with these arguments.

        Args:
          env: added to the environment, which has tests/ in PYTHONPATH, for `from programs.facts import tell`.
          stdin: what it reads there; None for /dev/null.
          terminal: give it a pseudo-terminal as its controlling terminal, and as descriptors 0, 1 and 2.
        """
        self.expects_traceback = expects_traceback
        self._changed = threading.Condition()
        self._facts: list[Fact] = []
        self._lines: list[str] = []
        self._stderr: list[str] = []
        self._open_streams = 0
        self._shared_memory = set(os.listdir(SHARED_MEMORY))
        self._terminal: int | None = None
        streams: list[tuple[IO[bytes], Callable[[str], object]]]
        command: list[str | os.PathLike[str]] = [sys.executable, *argv]
        path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": path,
            # Compiled modules are kept, as for most users, whatever the environment says: it halves a start.
            "PYTHONDONTWRITEBYTECODE": "",
            **(env or {}),
        }
        if terminal:
            self._terminal, slave = os.openpty()
            _without_echo(slave)
            # setsid makes it the controlling terminal: a child that Popen makes a session leader would need preexec_fn.
            self.process = subprocess.Popen(
                ["setsid", "--ctty", *command], env=environment, cwd=cwd, stdin=slave, stdout=slave, stderr=slave
            )
            os.close(slave)
            streams = [(os.fdopen(os.dup(self._terminal), "rb"), self._take_line)]
        else:
            self.process = subprocess.Popen(
                command,
                env=environment,
                cwd=cwd,
                start_new_session=True,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert self.process.stdout is not None
            assert self.process.stderr is not None
            streams = [(self.process.stdout, self._take_line), (self.process.stderr, self._stderr.append)]
            if self.process.stdin is not None:
                self.process.stdin.write((stdin or "").encode())
                self.process.stdin.close()
        self.pid = self.process.pid
        self._readers = [threading.Thread(target=self._read, args=stream, daemon=True) for stream in streams]
        self._open_streams = len(streams)
        for reader in self._readers:
            reader.start()

    # What it says

    @property
    def facts(self) -> list[Fact]:
        """All facts by now."""
        with self._changed:
            return list(self._facts)

    @property
    def lines(self) -> list[str]:
        """All other lines on stdout by now, without their ends."""
        with self._changed:
            return list(self._lines)

    @property
    def stderr(self) -> str:
        """What is on stderr by now (of a program in a terminal: nothing, it is among `lines`)."""
        with self._changed:
            return "".join(self._stderr)

    def facts_of(self, event: str, **fields: object) -> list[Fact]:
        """The facts with this event and these fields, by now."""
        return [fact for fact in self.facts if _agrees(fact, event, fields)]

    def wait_for(self, event: str, *, timeout: float = PATIENCE_S, **fields: object) -> Fact:
        """The first fact with this event and these fields, waited for if need be."""
        return self.wait_for_all(1, event, timeout=timeout, **fields)[0]

    def wait_for_all(self, count: int, event: str, *, timeout: float = PATIENCE_S, **fields: object) -> list[Fact]:
        """At least `count` facts with this event and these fields, waited for if need be."""

        def enough() -> bool:
            return len(self.facts_of(event, **fields)) >= count

        self._wait(enough, timeout, f"{count} × {event!r} with {fields}")
        return self.facts_of(event, **fields)

    def wait_for_line(self, pattern: str, *, timeout: float = PATIENCE_S) -> str:
        """The first other line on stdout that matches, waited for if need be."""

        def matching() -> list[str]:
            return [line for line in self.lines if re.search(pattern, line)]

        self._wait(lambda: bool(matching()), timeout, f"a line like {pattern!r}")
        return matching()[0]

    def _wait(self, satisfied: Callable[[], bool], timeout: float, wanted: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: satisfied() or not self._open_streams, timeout)
        if not satisfied():
            why = f"{timeout} s went by" if self._open_streams else "it has ended"
            raise AssertionError(f"no {wanted}: {why}\n{self}")

    # What is done to it

    def send_signal(self, number: int) -> None:
        """Send the primary a signal."""
        self.process.send_signal(number)

    def type(self, keys: bytes) -> None:
        """Type keys on its terminal."""
        assert self._terminal is not None
        os.write(self._terminal, keys)

    def finish(self, timeout: float = PATIENCE_S) -> Ended:
        """Wait for the end of the primary and of all that it has started."""
        if not self._has_ended_within(timeout):
            raise AssertionError(f"still running after {timeout} s\n{self}")
        left = self.wait_until_alone()
        assert not left, f"left behind by the primary: {_describe(left)}\n{self}"
        for reader in self._readers:
            reader.join(GONE_S)
        return Ended(self.process.returncode, self.facts, self.stderr)

    def _has_ended_within(self, timeout: float) -> bool:
        """The same as Popen.wait, which looks again only every 50 ms."""
        if self.process.poll() is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                select.select([pidfd], [], [], timeout)
            finally:
                os.close(pidfd)
        return self.process.poll() is not None

    def processes(self) -> list[int]:
        """The ids of the living processes of its session, the primary's included. Zombies do not live."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _lives_in(self.pid, pid)]

    def wait_until_alone(self) -> list[int]:
        """Wait until nothing but the primary is left of it. Returns what is left after GONE_S."""

        left: list[int] = []

        def is_alone() -> bool:
            left[:] = [pid for pid in self.processes() if pid != self.pid]
            return not left

        wait_until(is_alone, GONE_S)
        return left

    # Its end

    def close(self) -> None:
        """End what is left, and fail if something is that should not be."""
        faults = []
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if left := self.wait_until_alone():
            faults.append(f"alive after the primary has ended: {_describe(left)}")
            for pid in left:
                _kill(pid)
            self.wait_until_alone()
        for reader in self._readers:
            reader.join(GONE_S)
            if reader.is_alive():
                faults.append("its stdout or stderr is still open somewhere")
        if self._terminal is not None:
            os.close(self._terminal)
        if "Traceback (most recent call last)" in self.stderr + "\n".join(self.lines) and not self.expects_traceback:
            faults.append("a traceback that the test does not expect")
        if not wait_until(lambda: not self._left_in_shared_memory(), GONE_S):
            faults.append(f"left in {SHARED_MEMORY}: {sorted(self._left_in_shared_memory())}")
        assert not faults, "; ".join(faults) + f"\n{self}"

    def __str__(self) -> str:
        """All that it has said, for messages."""
        facts = "\n".join(map(str, self.facts[-50:]))
        return f"--- facts\n{facts}\n--- other lines\n" + "\n".join(self.lines[-50:]) + f"\n--- stderr\n{self.stderr}"

    def _left_in_shared_memory(self) -> set[str]:
        """What has come since the start, and is not of a process that lives: this program's are all gone."""
        left = set(os.listdir(SHARED_MEMORY)) - self._shared_memory
        for maps in pathlib.Path("/proc").glob("[0-9]*/maps") if left else ():
            with contextlib.suppress(OSError):  # one of them has gone meanwhile
                # By inode: a semaphore was mapped before it got its name.
                mapped = {line.split()[4] for line in maps.read_text().splitlines()}
                left = {name for name in left if str((SHARED_MEMORY / name).stat().st_ino) not in mapped}
        return left

    # Reading

    def _read(self, stream: IO[bytes], take: Callable[[str], object]) -> None:
        while True:
            try:
                line = stream.readline()
            except OSError:
                line = b""  # how a terminal ends
            with self._changed:
                if line:
                    take(line.decode(errors="replace"))
                else:
                    self._open_streams -= 1
                self._changed.notify_all()
            if not line:
                stream.close()
                return

    def _take_line(self, line: str) -> None:
        try:
            fact = json.loads(line)
        except ValueError:
            fact = None
        if isinstance(fact, dict) and "event" in fact:
            self._facts.append(fact)
        else:
            self._lines.append(line.rstrip("\r\n"))


class Programs:
    """What the fixture `cluster_program` gives: call it to start a program; it closes them all in the end."""

    def __init__(self) -> None:
        self._programs: list[Program] = []

    def __call__(
        self,
        name: str,
        *args: object,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        terminal: bool = False,
        expects_traceback: bool = False,
        options: Sequence[str] = (),
    ) -> Program:
        """Start tests/programs/NAME.py with arguments; `options` are the interpreter's. For the rest see `Program`."""
        argv: list[str | os.PathLike[str]] = [*options, PROGRAMS / f"{name}.py", *map(str, args)]
        return self.add(Program(*argv, env=env, cwd=cwd, terminal=terminal, expects_traceback=expects_traceback))

    def add(self, program: Program) -> Program:
        """Watch over another program, such as one started with -c."""
        self._programs.append(program)
        return program

    def close(self) -> None:
        """Close all, then fail if one had a fault."""
        faults = []
        for program in self._programs:
            try:
                program.close()
            except AssertionError as fault:
                faults.append(str(fault))
        assert not faults, "\n\n".join(faults)


def run_case(programs: Programs, program: str, name: str, *args: str) -> Fact:
    """Run one case of a program of cases. Returns what it tells.

    A case may tell that it was disturbed: the machine kept it from the processor, so that what it tells says nothing.
    It gets some more tries then.
    """
    for _ in range(UNDISTURBED_TRIES):
        case = programs(program, name, *args)
        fact = case.wait_for("facts", timeout=CASE_S)
        assert case.finish().returncode == 0
        if not fact.get("disturbed"):
            return fact
    raise AssertionError(f"{name} was disturbed {UNDISTURBED_TRIES} times, the last time by {fact['disturbed']}")


def wait_until(true: Callable[[], object], timeout: float = PATIENCE_S) -> bool:
    """Wait for something that no fact tells of. Returns whether it has come true."""
    deadline = time.monotonic() + timeout
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def free_port() -> int:
    """A TCP port that nobody has on 127.0.0.1 just now.

    Not one that bind(2) chooses: the kernel gives those to clients, too, and one may get it before the program does.
    """
    first_of_clients = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    return _free_port(10_000, max(first_of_clients, 20_000))


def privileged_port() -> int:
    """The same, of those that only root may bind."""
    return _free_port(512, 1024)


def _free_port(first: int, end: int) -> int:
    while True:
        port = random.randrange(first + _process, end, _processes)
        if port not in _given and is_free(port):
            _given.add(port)
            return port


_given: set[int] = set()
# The processes of pytest-xdist share the ports out.
_process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def is_free(port: int, kind: int = socket.SOCK_STREAM) -> bool:
    """Whether no socket of this kind has a port on 127.0.0.1; connections that have ended do not count."""
    with socket.socket(socket.AF_INET, kind) as sock:
        if kind == socket.SOCK_STREAM:  # two datagram sockets with this option may both have it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def is_listening(port: int) -> bool:
    """Whether somebody listens on this port, on any IPv4 address."""
    return bool(listening_rows(port))


def connect(port: int, host: str = "127.0.0.1", timeout: float = PATIENCE_S) -> socket.socket:
    """A TCP connection whose operations are bounded by `timeout`."""
    return socket.create_connection((host, port), timeout)


def connect_to(path: str) -> socket.socket:
    """A connection to a Unix socket, by path or abstract name, whose operations are bounded."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE_S)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def read_all(sock: socket.socket) -> bytes:
    """All that the peer says until it closes."""
    chunks = []
    while chunk := sock.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


def request(port: int, payload: bytes = b"", *, host: str = "127.0.0.1", timeout: float = PATIENCE_S) -> bytes:
    """Connect, say `payload`, and give back what the server says until it closes."""
    with connect(port, host, timeout) as sock:
        if payload:
            sock.sendall(payload)
        return read_all(sock)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    return _stat(pid)[:1] not in ([], ["Z"], ["X"])


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped it."""
    return _stat(pid)[:1] == ["T"]


def _lives_in(session: int, pid: int) -> bool:
    """Whether a process is of that session, and no zombie."""
    try:
        return os.getsid(pid) == session and is_alive(pid)
    except ProcessLookupError:
        return False


def _stat(pid: int) -> list[str]:
    """What /proc/PID/stat tells after the name, see proc(5); nothing of a process that is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _without_echo(terminal: int) -> None:
    attributes = termios.tcgetattr(terminal)
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)


def _describe(pids: list[int]) -> str:
    def command(pid: int) -> str:
        try:
            return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return "gone meanwhile"

    return ", ".join(f"{pid} ({command(pid).strip()})" for pid in pids)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _agrees(fact: Fact, event: str, fields: Mapping[str, object]) -> bool:
    return fact["event"] == event and all(name in fact and fact[name] == value for name, value in fields.items())
