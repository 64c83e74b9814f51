"""`settings.worker_timeout`: who hangs, what is said of it, and what is done about it."""

import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from harness import PROGRAMS, Fact, Program, Programs, connect, free_port, read_all, request, wait_until

TIMEOUT_S = 0.4
LINES = [
    number
    for number, line in enumerate((PROGRAMS / "hanging.py").read_text().splitlines(), 1)
    if line.endswith("# the line")
]
WHERE = {
    what: f'File "{PROGRAMS}/hanging.py", line {line} in block'
    for what, line in zip(("sleep", "sum"), LINES, strict=True)
}
has_uvloop = importlib.util.find_spec("uvloop") is not None

Start = Callable[..., tuple[Program, int]]


@pytest.fixture
def hanging(cluster_program: Programs) -> Start:
    """Start a server of programs/hanging.py. Returns it, and its port."""

    def start(kind: str, workers: int = 1, policy: str = "rr", **settings: Any) -> tuple[Program, int]:
        port = free_port()
        program = cluster_program(
            "hanging",
            kind,
            port,
            workers,
            json.dumps({"worker_timeout": TIMEOUT_S, "graceful_timeout": 0.1} | settings),
            env={"PYCLUSTER_SCHED_POLICY": policy},
        )
        program.wait_for_all(workers, "listening")
        return program, port

    return start


def ask(port: int, line: str) -> socket.socket:
    """A connection whose client has said a line."""
    connection = connect(port)
    connection.sendall(line.encode() + b"\n")
    return connection


def stop(program: Program) -> list[Fact]:
    """End the cluster. Returns the hangs that it has told of."""
    program.send_signal(signal.SIGTERM)
    assert program.finish().returncode == 0
    return program.facts_of("hang")


# ---- Who hangs


@pytest.mark.parametrize(
    ("kind", "policy", "what"),
    [
        ("asyncio", "rr", "sleep 60"),
        ("asyncio", "none", "sum 100000000000"),
        pytest.param("uvloop", "rr", "sum 100000000000", marks=pytest.mark.skipif(not has_uvloop, reason="no uvloop")),
    ],
)
def test_a_loop_that_does_not_run_while_a_connection_is_open_is_reported_with_the_line(
    hanging: Start, kind: str, policy: str, what: str
) -> None:
    program, port = hanging(kind, workers=2, policy=policy)
    with ask(port, what):
        hang = program.wait_for("hang")
        program.wait_for("hang of worker", worker=hang["worker"])
        [only] = stop(program)
    assert hang["where"] == WHERE[what.split()[0]]
    assert hang["state"] == ("sleeping" if what.startswith("sleep") else "running")
    assert hang["seconds"] >= TIMEOUT_S
    assert only == hang, "the other worker, which nobody asked, is not reported"
    stacks = hang["stacks"].split("\n\n")
    assert len(stacks) == 2, "the main thread and the control thread"
    assert stacks[0].splitlines()[1] == f"  {hang['where']}"
    assert f"while connections wait; it is {hang['state']}, in {hang['where']}\n" in program.stderr


@pytest.mark.parametrize("policy", ["rr", "none"])
def test_a_blocked_server_is_reported_when_others_wait(hanging: Start, policy: str) -> None:
    program, port = hanging("blocking", policy=policy)
    with ask(port, "sleep 60"), ask(port, "hello"):
        assert program.wait_for("hang")["where"] == WHERE["sleep"]
        assert len(stop(program)) == 1


def test_a_worker_whose_connections_others_have_taken_is_reported(hanging: Start) -> None:
    program, port = hanging("blocking", workers=2)
    with ask(port, "sleep 60"), contextlib.ExitStack() as clients:
        # In turn, and those of the blocked one are taken back: all are answered at once.
        for _ in range(4):
            assert read_all(clients.enter_context(ask(port, "hello"))).startswith(b"worker ")
        assert program.wait_for("hang")["where"] == WHERE["sleep"]
        assert len(stop(program)) == 1


def test_a_stopped_worker_is_reported_without_a_stack(hanging: Start) -> None:
    program, port = hanging("blocking")
    assert request(port, b"hello\n") == b"worker 1"
    pid = program.wait_for("online")["worker_pid"]
    os.kill(pid, signal.SIGSTOP)
    with ask(port, "hello") as waiting:
        hang = program.wait_for("hang")
        os.kill(pid, signal.SIGCONT)
        assert read_all(waiting) == b"worker 1"
    assert (hang["state"], hang["where"], hang["stacks"]) == ("stopped by a signal", None, "")
    stop(program)


def test_a_program_with_a_handler_for_the_signal_keeps_it(hanging: Start) -> None:
    program, port = hanging("handled")
    with ask(port, "sleep 60"), ask(port, "hello"):
        assert program.wait_for("hang")["state"] == "sleeping"
        stop(program)


def test_each_hang_is_reported_once_and_a_worker_that_goes_on_is_spared(
    hanging: Start, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grace_s = 5.0
    monkeypatch.setenv("GRACE_S", str(grace_s))
    program, port = hanging("asyncio", on_hang="kill")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with ask(port, f"read {fifo}") as blocked:
        program.wait_for("hang")
        fifo.write_bytes(b"")
        assert read_all(blocked) == b"worker 1"
    asked_at = time.monotonic()
    with ask(port, f"read {fifo}"):
        # It hangs again when its time of the first hang is over, and has a time of its own.
        assert program.wait_for("exit")["at_s"] - asked_at >= TIMEOUT_S + grace_s
    assert program.finish().returncode == 0
    assert len(program.facts_of("hang")) == 2


# ---- Who does not


def test_a_start_that_holds_the_gil_is_no_hang_though_connections_wait(hanging: Start) -> None:
    program, port = hanging("starting")
    assert request(port, b"hello\n") == b"worker 1"
    assert stop(program) == []


def test_a_loop_that_nobody_waits_for_may_block(hanging: Start) -> None:
    program, port = hanging("asyncio")
    assert request(port, b"hello\n") == b"worker 1"
    program.send_signal(signal.SIGUSR1)
    program.wait_for("message", message="done")
    assert stop(program) == []


def test_a_server_that_is_slow_but_goes_on_is_no_hang(hanging: Start) -> None:
    program, port = hanging("blocking", worker_timeout=2.0)
    with contextlib.ExitStack() as clients:
        for client in [clients.enter_context(ask(port, "sleep 0.5")) for _ in range(6)]:
            assert read_all(client) == b"worker 1"
    assert stop(program) == []


def test_nobody_is_watched_unless_it_is_asked_for(hanging: Start) -> None:
    program, port = hanging("asyncio", worker_timeout=None)
    assert request(port, b"descriptors\n") == b"0"
    stop(program)


# ---- What is done about it


def test_a_worker_that_hangs_is_killed_only_when_that_is_asked_for(hanging: Start) -> None:
    program, port = hanging("blocking", on_hang="kill", respawn="on-failure")
    with ask(port, "sleep 60"), ask(port, "hello") as waiting:
        assert read_all(waiting) == b"worker 2", "nothing that waited is lost"
    ended = program.wait_for("exit")
    assert (ended["worker"], ended["signal"], ended["asked"]) == (1, "SIGKILL", False)
    assert wait_until(lambda: f"(pid {ended['worker_pid']}) still hangs, and is killed" in program.stderr)
    assert [hang["where"] for hang in stop(program)] == [WHERE["sleep"]]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_has_its_own_stacks_only(hanging: Start, method: str) -> None:
    program, port = hanging("asyncio", workers=3, start_method=method)
    assert [request(port, b"descriptors\n") for _ in range(3)] == [b"1"] * 3
    stacks = "memfd:pycluster-stacks"

    def held() -> int:
        count = 0
        for fd in os.listdir(f"/proc/{program.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                count += stacks in os.readlink(f"/proc/{program.pid}/fd/{fd}")
        return count

    assert held() == 3
    os.kill(program.wait_for("online")["worker_pid"], signal.SIGKILL)
    program.wait_for("exit")
    assert wait_until(lambda: held() == 2)
    stop(program)
