"""Signals to the primary: a graceful end, a forced one, Ctrl-C in a terminal, and handlers that were there before."""

import functools
import os
import signal
import time

import pytest

from harness import (
    PATIENCE_S,
    Fact,
    Program,
    Programs,
    connect,
    free_port,
    is_listening,
    is_stopped,
    read_all,
    request,
    wait_until,
)

GET = b"GET / HTTP/1.0\r\n\r\n"
SLOW = b"GET /slow HTTP/1.0\r\n\r\n"


def exits(facts: list[Fact]) -> list[tuple[int | None, str | None, bool]]:
    ends = [fact for fact in facts if fact["event"] == "exit"]
    return [(fact["code"], fact["signal"], fact["asked"]) for fact in sorted(ends, key=lambda end: int(end["worker"]))]


def wait_for_refusal(program: Program) -> None:
    """The primary runs, both workers are in their ways, and the one that stops itself has stopped."""
    program.wait_for_all(2, "online")
    program.wait_for_all(2, "refusing")
    for fact in program.facts_of("refusing", way="stop"):
        assert wait_until(functools.partial(is_stopped, fact["pid"]))


# ---- The graceful end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["http", "accept", "asyncio"])
def test_a_signal_ends_the_cluster_and_answers_in_flight_are_given(
    kind: str, number: int, cluster_program: Programs
) -> None:
    port = free_port()
    program = cluster_program("serve", kind, 2, port)
    program.wait_for_all(2, "listening")
    with connect(port) as one, connect(port) as two:
        one.sendall(SLOW)
        two.sendall(SLOW)
        program.wait_for_all(2, "busy")
        program.send_signal(number)
        assert wait_until(lambda: not is_listening(port)), "no new connections are taken"
        assert not program.facts_of("exit")
        for client in (one, two):
            client.sendall(b"go\n")
            assert b"worker" in read_all(client)
    ended = program.finish()
    assert exits(ended.facts) == [(0, None, True)] * 2
    assert ended.facts[-1]["event"] == "over", "run() has returned"
    assert ended.returncode == 0


def test_a_signal_ends_workers_that_listen_to_nothing(cluster_program: Programs) -> None:
    program = cluster_program("ends", "waits", "spins")
    program.wait_for_all(2, "online")
    program.wait_for_all(2, "waiting")
    program.send_signal(signal.SIGTERM)
    ended = program.finish()
    assert exits(ended.facts) == [(0, None, True)] * 2
    assert ended.returncode == 0


def test_a_signal_that_comes_while_workers_start_ends_them(cluster_program: Programs) -> None:
    program = cluster_program("serve", "http", 4, free_port())
    program.wait_for("fork")  # the first event: run() answers signals now
    program.send_signal(signal.SIGTERM)
    ended = program.finish()
    assert exits(ended.facts) == [(0, None, True)] * 4


def test_workers_may_take_their_time_within_the_graceful_timeout(cluster_program: Programs) -> None:
    program = cluster_program("stubborn", 30, "end later", "end later")
    wait_for_refusal(program)
    program.send_signal(signal.SIGTERM)
    ended = program.finish()
    assert len([fact for fact in ended.facts if fact["event"] == "cleaned up"]) == 2
    assert exits(ended.facts) == [(0, None, True)] * 2


def test_the_implicit_run_answers_signals_too(cluster_program: Programs) -> None:
    program = cluster_program("implicit", "waits")
    program.wait_for_all(2, "online")
    program.send_signal(signal.SIGTERM)
    ended = program.finish()
    assert len(exits(ended.facts)) == 2
    assert ended.returncode == 0


# ---- The forced end


@pytest.mark.parametrize("way", ["refuse", "stop"])
def test_a_worker_that_hangs_is_killed_after_the_graceful_timeout(way: str, cluster_program: Programs) -> None:
    program = cluster_program("stubborn", 2, way, "end later")
    wait_for_refusal(program)
    program.send_signal(signal.SIGTERM)
    ended = program.finish()
    assert exits(ended.facts) == [(None, "SIGKILL", True), (0, None, True)]
    assert ended.facts[-1]["event"] == "over"


def test_an_open_connection_does_not_keep_a_worker_past_the_graceful_timeout(cluster_program: Programs) -> None:
    port = free_port()
    program = cluster_program("serve", "asyncio", 1, port, '{"graceful_timeout": 0.3}')
    program.wait_for("listening")
    with connect(port) as client:
        client.sendall(SLOW)
        program.wait_for("busy")
        program.send_signal(signal.SIGTERM)
        assert exits(program.finish().facts) == [(None, "SIGKILL", True)]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_kills_at_once(second: int, cluster_program: Programs) -> None:
    program = cluster_program("stubborn", 3000, "refuse", "stop")
    wait_for_refusal(program)
    program.send_signal(signal.SIGTERM)
    program.wait_for("refused")
    program.send_signal(second)
    assert exits(program.finish().facts) == [(None, "SIGKILL", True)] * 2


def test_a_first_signal_after_disconnect_is_still_graceful(cluster_program: Programs) -> None:
    program = cluster_program("stubborn", 0.3, "refuse", "ask")
    program.wait_for("refused")
    program.wait_for("exit", worker=2)
    sent_at = time.monotonic()
    program.send_signal(signal.SIGTERM)
    assert exits(program.finish().facts) == [(None, "SIGKILL", True), (0, None, True)]
    assert program.wait_for("exit", worker=1)["at_s"] - sent_at >= 0.3


def test_disconnect_alone_kills_nobody(cluster_program: Programs) -> None:
    """As in Node.js: only signals (and reload) set a limit."""
    program = cluster_program("stubborn", 0.1, "end later", "ask")
    assert exits(program.finish().facts) == [(0, None, True)] * 2


# ---- A worker's own signals


def test_sigint_for_a_worker_alone_changes_nothing(cluster_program: Programs) -> None:
    """A terminal sends it to all; the primary answers for all."""
    port = free_port()
    program = cluster_program("serve", "http", 1, port)
    worker = program.wait_for("listening")["worker_pid"]
    os.kill(worker, signal.SIGINT)
    for _ in range(3):
        assert request(port, GET).endswith(b"worker 1")
    program.send_signal(signal.SIGTERM)
    assert exits(program.finish().facts) == [(0, None, True)]


@pytest.mark.parametrize("way", ["run", "serve"])
def test_previous_signal_handlers_are_back_after(way: str, cluster_program: Programs) -> None:
    program = cluster_program("previous", way)
    facts = program.finish().facts
    in_primary = [fact["own"] for fact in facts if fact["event"] == "handlers"]
    assert in_primary == [[True, True, True], [False, False, True], [True, True, True]]
    assert [fact["signal"] for fact in facts if fact["event"] == "own"] == ["SIGUSR1", "SIGINT"]
    exit = next(fact for fact in facts if fact["event"] == "exit")
    assert (exit["code"], exit["asked"]) == (0, True)


def test_a_worker_has_none_of_the_primarys_signal_handlers(cluster_program: Programs) -> None:
    program = cluster_program("previous", "run")
    [in_worker] = [fact for fact in program.finish().facts if fact["event"] == "in worker"]
    assert in_worker["own"] == [False, False, False]
    assert in_worker["term"] is True


@pytest.mark.parametrize("where", ["handler", "thread"])
@pytest.mark.parametrize("way", ["run", "serve"])
def test_a_process_that_the_primary_forks_on_its_own_has_the_previous_signal_handlers(
    way: str, where: str, cluster_program: Programs
) -> None:
    """From its first moment on: one that is terminated as soon as it has been started ends."""
    program = cluster_program("own_children", way, where)
    terminated = program.wait_for("terminated")
    assert set(terminated["codes"]) == {-signal.SIGTERM}
    assert terminated["mask"] == []
    facts = program.finish().facts
    [child] = [fact for fact in facts if fact["event"] == "child"]
    assert (child["written"], child["mask"]) == (0, [])
    assert [fact["pid"] for fact in facts if fact["event"] == "own"] == [child["pid"]]
    [exit] = [fact for fact in facts if fact["event"] == "exit"]
    assert (exit["code"], exit["asked"]) == (0, True), "the primary answers signals as before"


# ---- Ctrl-C


@pytest.mark.parametrize("way", ["run", "serve", "implicitly"])
def test_ctrl_c_in_a_terminal_ends_the_cluster_without_a_traceback(way: str, cluster_program: Programs) -> None:
    program = cluster_program("terminal", way, free_port(), terminal=True)
    assert program.wait_for("ready")["foreground"] is True
    program.wait_for_all(5, "works")
    program.wait_for_all(2, "listening")
    program.type(b"\x03")
    ended = program.finish(PATIENCE_S)
    assert [(code, signal) for code, signal, _ in exits(ended.facts)] == [(0, None)] * 5
    # The child of one worker ends of Ctrl-C, and so may its worker, before it is asked to.
    assert sum(asked for _, _, asked in exits(ended.facts)) >= 4
    assert ended.returncode == 0
    assert program.lines == []


def test_ctrl_c_twice_kills_what_does_not_end(cluster_program: Programs) -> None:
    program = cluster_program("stubborn", 3000, "refuse", "stop", terminal=True)
    wait_for_refusal(program)
    program.type(b"\x03")
    program.wait_for("refused")
    program.type(b"\x03")
    assert exits(program.finish(PATIENCE_S).facts) == [(None, "SIGKILL", True)] * 2


@pytest.mark.parametrize("way", ["run", "serve"])
def test_no_signal_waits_for_the_next_event(way: str, cluster_program: Programs) -> None:
    program = cluster_program("signalled", way)
    signalled = program.wait_for("signalled", timeout=45)
    assert signalled["lost"] == 0
    assert signalled["sent"] >= 200
    ended = program.finish()
    assert ended.returncode == 0
    assert ended.facts[-1]["wakeup_fd"] == -1
