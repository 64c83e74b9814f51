"""A worker's life: how it ends, by itself, by signals, and by disconnect(); what is known of it at each step."""

import os
import signal

import pytest

from harness import (
    GONE_S,
    PATIENCE_S,
    Fact,
    Programs,
    connect,
    free_port,
    is_alive,
    is_listening,
    read_all,
    request,
    wait_until,
)
from puppets import Start

GET = b"GET / HTTP/1.0\r\n\r\n"
SLOW = b"GET /slow HTTP/1.0\r\n\r\n"
SERVERS = ["http", "accept", "asyncio"]


def only(facts: list[Fact], event: str) -> Fact:
    [fact] = [fact for fact in facts if fact["event"] == event]
    return fact


# ---- Its end by itself


@pytest.mark.parametrize(("way", "code"), [("returns", 0), ("0", 0), ("7", 7), ("255", 255), ("message", 1)])
def test_a_worker_exits_with_the_status_of_its_script(way: str, code: int, cluster_program: Programs) -> None:
    ended = cluster_program("ends", way).finish()
    exit = only(ended.facts, "exit")
    assert (exit["code"], exit["signal"], exit["asked"]) == (code, None, False)
    assert exit["state"] == "dead"
    disconnect = only(ended.facts, "disconnect")
    assert (disconnect["state"], disconnect["asked"]) == ("disconnected", False)
    if way == "message":
        assert ended.stderr == "this is why\n"
    assert ended.returncode == 0, "how a worker ends is no failure of the primary"


def test_a_worker_that_has_listened_is_said_to_before_its_end(cluster_program: Programs) -> None:
    facts = cluster_program("unheard").finish().facts
    assert [fact["event"] for fact in facts] == ["fork", "online", "listening", "disconnect", "exit"]


def test_an_uncaught_exception_ends_a_worker_with_1_and_a_traceback(cluster_program: Programs) -> None:
    ended = cluster_program("ends", "raises", expects_traceback=True).finish()
    exit = only(ended.facts, "exit")
    assert (exit["code"], exit["signal"], exit["asked"]) == (1, None, False)
    assert ended.stderr.count("Traceback") == 1
    assert ended.stderr.endswith("LookupError: nothing here\n")
    assert 'raise LookupError("nothing here")' in ended.stderr


def test_the_traceback_of_a_worker_shows_none_of_the_librarys_frames(cluster_program: Programs) -> None:
    ended = cluster_program("ends", "raises", expects_traceback=True).finish()
    frames = [line for line in ended.stderr.splitlines() if line.startswith("  File ")]
    assert all("ends.py" in frame for frame in frames), ended.stderr


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGRTMIN"])
def test_a_worker_killed_by_a_signal_reports_the_signal(name: str, cluster_program: Programs) -> None:
    exit = only(cluster_program("ends", name).finish().facts, "exit")
    assert (exit["code"], exit["signal"], exit["asked"]) == (None, name, False)


def test_a_worker_that_dumps_core_reports_the_signal(cluster_program: Programs) -> None:
    exit = only(cluster_program("ends", "SIGABRT").finish().facts, "exit")
    assert (exit["code"], exit["signal"]) == (None, "SIGABRT")


def test_a_real_time_signal_without_a_name_does_not_stop_the_cluster(cluster_program: Programs) -> None:
    """signal.Signals knows SIGRTMIN and SIGRTMAX, and none of those between, which are numbers then."""
    program = cluster_program("ends", "waits", "returns")
    os.kill(program.wait_for("waiting")["pid"], signal.SIGRTMIN + 3)
    ended = program.finish()
    ends = {fact["worker"]: (fact["code"], fact["signal"]) for fact in ended.facts if fact["event"] == "exit"}
    assert ends == {1: (None, signal.SIGRTMIN + 3), 2: (0, None)}
    assert ended.facts[-1]["event"] == "over"


def test_a_worker_killed_from_outside_is_not_said_to_have_been_asked(cluster_program: Programs) -> None:
    program = cluster_program("ends", "spins")
    os.kill(program.wait_for("waiting")["pid"], signal.SIGKILL)
    exit = only(program.finish().facts, "exit")
    assert (exit["code"], exit["signal"], exit["asked"]) == (None, "SIGKILL", False)


# ---- kill()

KILLS = [
    ("kill", "SIGTERM", True),
    ("destroy", "SIGTERM", True),
    ("by name", "SIGUSR1", True),
    ("by number", "SIGKILL", True),
    ("process", "SIGTERM", False),
    ("process by name", "SIGKILL", False),
    ("outside", "SIGKILL", False),
    ("twice", "SIGTERM", True),
    ("itself", "SIGTERM", True),
]


@pytest.mark.parametrize(("way", "name", "asked"), KILLS)
def test_a_killed_worker_says_by_which_signal_and_whether_it_was_asked(
    way: str, name: str, asked: bool, cluster_program: Programs
) -> None:
    facts = cluster_program("killed", way).finish().facts
    exit = only(facts, "exit")
    assert (exit["code"], exit["signal"], exit["asked"]) == (None, name, asked)
    disconnect = only(facts, "disconnect")
    assert (disconnect["state"], disconnect["asked"]) == ("disconnected", asked)


@pytest.mark.parametrize(("way", "asked"), [("kill", True), ("process", False)])
def test_a_worker_that_computes_for_ever_can_be_killed(way: str, asked: bool, cluster_program: Programs) -> None:
    exit = only(cluster_program("killed", way, "spin").finish().facts, "exit")
    assert (exit["code"], exit["signal"], exit["asked"]) == (None, "SIGTERM", asked)


def test_exited_after_disconnect_is_none_until_the_worker_disconnects_or_exits(cluster_program: Programs) -> None:
    facts = cluster_program("killed", "outside").finish().facts
    asked = [only(facts, event)["asked"] for event in ("before", "waits", "killed", "after", "still")]
    assert asked == [None, None, None, False, False]


def test_a_workers_state_and_process_follow_its_life(cluster_program: Programs) -> None:
    facts = cluster_program("killed", "by number").finish().facts
    told = {
        event: [only(facts, event)[name] for name in ("state", "connected", "process_connected", "dead")]
        for event in ("before", "waits", "after")
    }
    assert told == {
        "before": ["none", True, True, False],
        "waits": ["online", True, True, False],
        "after": ["dead", False, False, True],
    }
    assert [only(facts, event)["signal"] for event in ("waits", "after")] == [None, signal.SIGKILL]
    assert only(facts, "after")["exitcode"] is None


def test_kill_and_disconnect_of_a_dead_worker_change_nothing(cluster_program: Programs) -> None:
    facts = cluster_program("killed", "outside").finish().facts
    names = "asked", "state", "connected", "dead", "signal", "exitcode"
    assert [only(facts, "still")[name] for name in names] == [only(facts, "after")[name] for name in names]


def test_a_signal_that_does_not_exist_is_a_value_error_that_names_it(cluster_program: Programs) -> None:
    facts = cluster_program("killed", "wrong").finish().facts
    refused = [fact["text"] for fact in facts if fact["event"] == "refused"]
    assert len(refused) == 2
    assert "SIGNOTHING" in refused[0]
    assert "12345" in refused[1]


# ---- disconnect()


@pytest.mark.parametrize("what", ["sleep", "spin", "wait"])
@pytest.mark.parametrize("who", ["primary", "worker"])
def test_a_disconnected_worker_ends_with_0_whatever_it_does(who: str, what: str, cluster_program: Programs) -> None:
    facts = cluster_program("disconnected", what, who, 1).finish().facts
    exit = only(facts, "exit")
    assert (exit["code"], exit["signal"], exit["asked"]) == (0, None, True)
    events = [fact["event"] for fact in facts]
    assert events.index("disconnect") < events.index("exit")
    assert "atexit" in events


@pytest.mark.parametrize("who", ["primary", "worker"])
def test_a_worker_that_is_disconnected_twice_disconnects_once(who: str, cluster_program: Programs) -> None:
    facts = cluster_program("disconnected", "sleep", who, 2).finish().facts
    assert only(facts, "exit")["code"] == 0
    assert only(facts, "disconnect")["asked"] is True
    assert only(facts, "gone")["asked"] is True


def test_disconnect_is_emitted_in_the_worker_too(cluster_program: Programs) -> None:
    facts = cluster_program("disconnected", "sleep", "primary", 1).finish().facts
    waits, gone = only(facts, "waits"), only(facts, "gone")
    waits, gone = only(facts, "waits"), only(facts, "gone")
    assert (waits["state"], waits["asked"], waits["connected"], waits["dead"]) == ("online", None, [True] * 2, False)
    assert (gone["state"], gone["asked"], gone["connected"], gone["dead"]) == ("disconnected", True, [False] * 2, False)
    in_primary = only(facts, "disconnect")
    assert (in_primary["state"], in_primary["asked"]) == ("disconnected", True)
    asked = only(facts, "asked")
    assert (asked["same"], asked["state"]) == (True, "disconnecting")


def test_a_disconnected_worker_gets_systemexit_in_its_main_thread(cluster_program: Programs) -> None:
    facts = cluster_program("disconnected", "catch", "primary", 1).finish().facts
    assert only(facts, "caught")["code"] == 0
    assert only(facts, "exit")["code"] == 0


def test_the_finally_clauses_of_a_disconnected_worker_run_to_their_end(cluster_program: Programs) -> None:
    facts = cluster_program("disconnected", "clean up", "primary", 1).finish().facts
    assert only(facts, "cleaned up")
    assert only(facts, "exit")["code"] == 0


def test_a_disconnected_worker_may_still_choose_its_exit_status(cluster_program: Programs) -> None:
    facts = cluster_program("disconnected", "refuse", "primary", 1).finish().facts
    assert only(facts, "refused")
    exit = only(facts, "exit")
    assert (exit["code"], exit["asked"]) == (9, True)


def test_a_disconnected_worker_that_refuses_to_end_is_gone_when_the_primary_is(cluster_program: Programs) -> None:
    program = cluster_program("disconnected", "live on", "primary", 1)
    program.wait_for("lives on")
    program.wait_for("disconnect")
    assert len(program.processes()) == 2
    program.send_signal(signal.SIGKILL)
    assert program.wait_until_alone() == []


def test_a_worker_that_ends_by_itself_after_disconnect_ends_with_0(cluster_program: Programs) -> None:
    facts = cluster_program("disconnected", "end", "worker", 1).finish().facts
    exit = only(facts, "exit")
    assert (exit["code"], exit["asked"]) == (0, True)


def test_workers_disconnected_while_they_start_end_with_0_and_no_traceback(cluster_program: Programs) -> None:
    """Some of the eight are in a bind() or listen() when the primary hears no more of it."""
    program = cluster_program("opening", *[free_port() for _ in range(10)])
    ended = program.finish()
    ends = [(fact["code"], fact["asked"]) for fact in ended.facts if fact["event"] == "exit"]
    assert ended.stderr == ""
    assert ends == [(0, True)] * 8


@pytest.mark.parametrize("how", ["disconnect", "all"])
def test_workers_disconnected_as_soon_as_they_are_forked_end_with_0(how: str, cluster_program: Programs) -> None:
    facts = cluster_program("at_once", how).finish().facts
    ends = [(fact["code"], fact["signal"], fact["asked"]) for fact in facts if fact["event"] == "exit"]
    assert ends == [(0, None, True)] * 12
    told = [fact["event"] for fact in facts if fact["event"] in ("disconnect", "callback")]
    assert told == ["disconnect"] * 12 + ["callback"] * (how == "all")


def test_workers_killed_as_soon_as_they_are_forked_report_the_signal(cluster_program: Programs) -> None:
    facts = cluster_program("at_once", "kill").finish().facts
    ends = [(fact["code"], fact["signal"], fact["asked"]) for fact in facts if fact["event"] == "exit"]
    assert ends == [(None, "SIGTERM", True)] * 12


# ---- disconnect() and connections


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("who", ["please", "leave"])
def test_an_idle_server_ends_when_disconnected(kind: str, who: str, cluster_program: Programs) -> None:
    port = free_port()
    program = cluster_program("serve", kind, 1, port)
    program.wait_for("listening")
    assert request(port, GET).endswith(b"worker 1")
    assert request(port, f"GET /{who} HTTP/1.0\r\n\r\n".encode()).endswith(b"worker 1")
    facts = program.finish().facts
    exit = only(facts, "exit")
    assert (exit["code"], exit["asked"]) == (0, True)


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("who", ["please", "leave"])
def test_a_slow_answer_in_flight_during_disconnect_is_given(kind: str, who: str, cluster_program: Programs) -> None:
    port = free_port()
    program = cluster_program("serve", kind, 1, port)
    program.wait_for("listening")
    with connect(port) as client:
        client.sendall(f"GET /{who}/slow HTTP/1.0\r\n\r\n".encode())
        program.wait_for("busy")
        # The listener closes with its last worker's disconnect, which has reached the primary then.
        assert wait_until(lambda: not is_listening(port))
        assert not program.facts_of("disconnect")
        client.sendall(b"go\n")
        assert read_all(client).endswith(b"worker 1")
    facts = program.finish().facts
    exit = only(facts, "exit")
    assert (exit["code"], exit["asked"]) == (0, True)
    events = [fact["event"] for fact in facts]
    assert events.index("answered") < events.index("disconnect") < events.index("exit")


def test_a_disconnected_workers_new_connections_go_to_the_others(cluster_program: Programs) -> None:
    port = free_port()
    program = cluster_program("serve", "http", 2, port)
    program.wait_for_all(2, "listening")
    with connect(port) as client:
        client.sendall(b"GET /please/slow HTTP/1.0\r\n\r\n")
        worker = program.wait_for("disconnecting")["worker"]
        other = f"worker {3 - worker}".encode()
        program.wait_for("busy")
        for _ in range(6):
            assert request(port, GET).endswith(other)
        client.sendall(b"go\n")
        assert read_all(client).endswith(f"worker {worker}".encode())
    assert program.wait_for("exit", worker=worker)["code"] == 0
    assert request(port, GET).endswith(other)
    request(port, b"GET /leave HTTP/1.0\r\n\r\n")
    assert program.finish().returncode == 0


def test_connections_that_an_asyncio_server_holds_may_all_finish(cluster_program: Programs) -> None:
    port = free_port()
    program = cluster_program("serve", "asyncio", 1, port)
    program.wait_for("listening")
    clients = [connect(port) for _ in range(10)]
    for client in clients:
        client.sendall(SLOW)
    program.wait_for_all(10, "busy")
    assert request(port, b"GET /leave HTTP/1.0\r\n\r\n").endswith(b"worker 1")
    assert wait_until(lambda: not is_listening(port))
    for client in clients:
        assert not program.facts_of("disconnect")
        client.sendall(b"go\n")
        assert read_all(client).endswith(b"worker 1")
        client.close()
    assert only(program.finish().facts, "exit")["code"] == 0


def test_a_client_that_goes_away_does_not_keep_a_disconnected_worker(cluster_program: Programs) -> None:
    port = free_port()
    program = cluster_program("serve", "asyncio", 1, port)
    program.wait_for("listening")
    with connect(port) as client:
        client.sendall(b"GET /leave/slow HTTP/1.0\r\n\r\n")
        program.wait_for("busy")
    assert only(program.finish().facts, "exit")["code"] == 0


# ---- Its end with the primary's


@pytest.mark.parametrize("way", ["waits", "spins"])
def test_workers_are_gone_soon_after_the_primary_was_killed(way: str, cluster_program: Programs) -> None:
    program = cluster_program("ends", way, way)
    workers = [fact["pid"] for fact in program.wait_for_all(2, "waiting")]
    program.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not any(map(is_alive, workers)), GONE_S)
    assert program.finish().returncode == -signal.SIGKILL


@pytest.mark.parametrize("kind", SERVERS)
def test_servers_are_gone_soon_after_the_primary_was_killed(kind: str, cluster_program: Programs) -> None:
    port = free_port()
    # asyncio reports the task of the open connection, which it cancels when SystemExit ends its loop.
    program = cluster_program("serve", kind, 2, port, expects_traceback=kind == "asyncio")
    program.wait_for_all(2, "listening")
    with connect(port) as client:
        client.sendall(SLOW)
        program.wait_for("busy")
        workers = [fact["worker_pid"] for fact in program.facts_of("listening")]
        program.send_signal(signal.SIGKILL)
        assert wait_until(lambda: not any(map(is_alive, workers)), GONE_S)
    program.finish(PATIENCE_S)


def test_the_last_worker_ends_when_disconnected_though_it_never_accepts_after_it_was_passed_over(start: Start) -> None:
    cluster = start()
    cluster.pass_over(1, 2)
    cluster.do(0, "kill", worker=2, signal="SIGKILL")
    cluster.wait_for_exit(2)
    cluster.do(0, "disconnect", worker=1)
    assert cluster.wait_for_exit(1) == (0, None)
