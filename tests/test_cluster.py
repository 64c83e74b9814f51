"""The cluster object: its workers, the order of its events, its handlers, its settings, and which role may do what."""

import re
import sys
from typing import Any

import pytest

from harness import PATIENCE_S, Fact, Program, Programs, free_port
from pycluster import cluster

# ---- Events


def events_of(facts: list[Fact], worker: int) -> list[str]:
    names = ("fork", "online", "listening", "disconnect", "exit")
    return [fact["event"] for fact in facts if fact["event"] in names and fact["worker"] == worker]


def test_the_events_of_a_worker_come_in_order_on_the_worker_and_on_the_cluster(cluster_program: Programs) -> None:
    program = cluster_program("events", free_port(), free_port())
    facts = program.finish().facts
    heard = [(fact["by"], fact["what"]) for fact in facts if fact["event"] == "heard"]
    assert [what for by, what in heard if by == "worker"] == ["online", "listening", "listening", "disconnect", "exit"]
    expected = ["fork", "online", "listening", "listening", "disconnect", "exit"]
    assert [what for by, what in heard if by == "cluster"] == expected
    states = {(fact["what"], fact["state"]) for fact in facts if fact["event"] == "heard"}
    assert states == {
        ("fork", "none"),
        ("online", "online"),
        ("listening", "listening"),
        ("disconnect", "disconnected"),
        ("exit", "dead"),
    }
    assert facts[0]["event"] == "forked", "fork is emitted by the next dispatch, so that handlers can still be added"
    assert facts[0]["state"] == "none"


def test_fork_is_emitted_first_however_fast_the_worker_is(cluster_program: Programs) -> None:
    facts = cluster_program("slow_primary").finish().facts
    assert events_of(facts, 1) == ["fork", "online", "disconnect", "exit"]
    assert events_of(facts, 2) == ["fork", "online", "disconnect", "exit"]


def test_events_on_the_cluster_have_the_worker_as_their_first_argument(cluster_program: Programs) -> None:
    program = cluster_program("events", free_port(), free_port())
    heard = [fact for fact in program.finish().facts if fact["event"] == "heard"]
    for what in ("online", "listening", "disconnect", "exit"):
        on_worker = next(fact["args"] for fact in heard if fact["by"] == "worker" and fact["what"] == what)
        on_cluster = next(fact["args"] for fact in heard if fact["by"] == "cluster" and fact["what"] == what)
        assert on_cluster[0].startswith("<Worker 1 ")
        assert on_cluster[1:] == on_worker


def test_a_listening_event_tells_the_address(cluster_program: Programs) -> None:
    ports = free_port(), free_port()
    program = cluster_program("events", *ports)
    addresses = [fact["fields"] for fact in program.finish().facts if fact["event"] == "address"]
    inet, stream = 2, 1
    assert addresses == [["127.0.0.1", port, inet, stream, None, None] for port in ports]


def test_exactly_one_of_code_and_signal_is_none(cluster_program: Programs) -> None:
    program = cluster_program("ends", "returns", "7", "SIGKILL", "SIGTERM")
    exits = [fact for fact in program.finish().facts if fact["event"] == "exit"]
    ends = {fact["worker"]: (fact["code"], fact["signal"]) for fact in exits}
    assert ends == {1: (0, None), 2: (7, None), 3: (None, "SIGKILL"), 4: (None, "SIGTERM")}


def test_a_worker_leaves_workers_before_the_later_of_disconnect_and_exit(cluster_program: Programs) -> None:
    program = cluster_program("ends", "returns", "raises", "SIGKILL", expects_traceback=True)
    facts = program.finish().facts
    for worker in (1, 2, 3):
        ends = [fact for fact in facts if fact["event"] in ("disconnect", "exit") and fact["worker"] == worker]
        assert sorted(fact["event"] for fact in ends) == ["disconnect", "exit"]
        assert worker in ends[0]["workers"]
        assert worker not in ends[1]["workers"]
        assert [event for event in events_of(facts, worker) if event in ("fork", "online")] == ["fork", "online"]


def test_ids_are_counted_from_1_and_never_reused(cluster_program: Programs) -> None:
    program = cluster_program("respawn", 6)
    facts = program.finish().facts
    assert [fact["worker"] for fact in facts if fact["event"] == "fork"] == [1, 2, 3, 4, 5, 6]
    assert facts[-1]["workers"] == []


# ---- Handlers


def test_an_exit_handler_may_fork_a_worker_in_the_place_of_the_one_that_crashed(cluster_program: Programs) -> None:
    program = cluster_program("respawn", 6)
    ended = program.finish()
    ends = {fact["worker"]: (fact["code"], fact["signal"]) for fact in ended.facts if fact["event"] == "exit"}
    assert ends == {worker: (None, "SIGKILL") if worker % 2 else (3, None) for worker in range(1, 7)}
    assert all(fact["asked"] is False for fact in ended.facts if fact["event"] == "exit")
    assert ended.returncode == 0


def test_handlers_can_be_decorated_called_once_and_removed(cluster_program: Programs) -> None:
    program = cluster_program("handlers", expects_traceback=True)
    heard = [(fact["by"], fact["worker"]) for fact in program.finish().facts if fact["event"] == "heard"]
    assert sorted(by for by, _ in heard) == ["decorated", "decorated", "once", "plain", "plain"]
    assert sorted(worker for by, worker in heard if by == "decorated") == [1, 2]


def test_a_handler_that_raises_is_logged_and_stops_neither_the_others_nor_the_cluster(
    cluster_program: Programs,
) -> None:
    program = cluster_program("handlers", expects_traceback=True)
    ended = program.finish()
    assert ended.returncode == 0
    assert ended.facts[-1]["event"] == "over"
    for worker in (1, 2):
        assert f"LookupError: handler for {worker}" in ended.stderr
    assert ended.stderr.count("LookupError: a worker's handler fails") == 2


def test_the_cancellation_of_a_future_in_a_handler_stops_as_little(cluster_program: Programs) -> None:
    ended = cluster_program("cancelled_future", expects_traceback=True).finish()
    told = [tuple(fact.get(name) for name in ("event", "text", "code")) for fact in ended.facts]
    assert sorted(told[:2]) == [("error", "CancelledError('online')", None), ("error", "CancelledError('sent')", None)]
    assert told[2:] == [("heard", "first", None), ("heard", "second", None), ("exit", None, 0)]
    for text in ("first", "first answered", "second", "second answered"):
        assert ended.stderr.count(f"CancelledError: {text}\n") == 1


def test_an_error_listener_gets_what_handlers_raise(cluster_program: Programs) -> None:
    program = cluster_program("handlers", "error")
    ended = program.finish()
    errors = [fact for fact in ended.facts if fact["event"] == "error"]
    assert {error["type"] for error in errors} == {"LookupError"}
    assert sorted(error["text"] for error in errors) == [
        "a worker's handler fails",
        "a worker's handler fails",
        "handler for 1",
        "handler for 2",
    ]
    assert ended.stderr == ""
    assert ended.facts[-1]["event"] == "over"


def test_what_an_error_listener_raises_is_logged_and_not_given_to_itself(cluster_program: Programs) -> None:
    program = cluster_program("handlers", "error", "fails", expects_traceback=True)
    ended = program.finish()
    assert "even the handler of errors fails" in ended.stderr
    assert len([fact for fact in ended.facts if fact["event"] == "error"]) == 4
    assert ended.facts[-1]["event"] == "over"


# ---- run() and disconnect()


def test_run_returns_when_the_last_worker_has_gone(cluster_program: Programs) -> None:
    program = cluster_program("ends", "returns", "0", "3")
    facts = program.finish().facts
    assert facts[-1]["event"] == "over"
    assert facts[-1]["workers"] == []
    assert len([fact for fact in facts if fact["event"] == "exit"]) == 3


def test_run_returns_at_once_without_workers(cluster_program: Programs) -> None:
    program = cluster_program("no_workers")
    assert program.finish().facts[0]["event"] == "ran"


def test_disconnect_without_workers_calls_back_in_the_next_dispatch(cluster_program: Programs) -> None:
    program = cluster_program("no_workers")
    events = [fact["event"] for fact in program.finish().facts]
    assert events[1:3] == ["asked", "disconnected"]


def test_setup_is_emitted_in_the_next_dispatch(cluster_program: Programs) -> None:
    program = cluster_program("no_workers")
    facts = program.finish().facts
    assert [(fact["event"], fact["silent"]) for fact in facts[3:5]] == [("set up", True), ("setup", True)]


def test_workers_is_empty_and_worker_is_none_in_a_primary_without_workers(cluster_program: Programs) -> None:
    program = cluster_program("no_workers")
    [fact] = [fact for fact in program.finish().facts if fact["event"] == "workers"]
    assert (fact["workers"], fact["worker"]) == ({}, None)


def test_workers_and_settings_are_read_only(cluster_program: Programs) -> None:
    program = cluster_program("no_workers")
    assert len([fact for fact in program.finish().facts if fact["event"] == "refused"]) == 5


def test_disconnect_calls_back_when_all_workers_are_disconnected(cluster_program: Programs) -> None:
    program = cluster_program("disconnect_all", free_port())
    program.wait_for("callback")
    # The third one computes for ever in Python: it is disconnected, too, and ends between two of its bytecodes.
    facts = program.finish().facts
    callbacks = [fact for fact in facts if fact["event"] == "callback"]
    assert len(callbacks) == 1
    assert not any(callbacks[0]["connected"])
    before = facts[: facts.index(callbacks[0])]
    assert sorted(fact["worker"] for fact in before if fact["event"] == "disconnect") == [1, 2, 3]
    exits = [(fact["code"], fact["asked"]) for fact in facts if fact["event"] == "exit"]
    assert exits == [(0, True)] * 3


def test_a_primary_whose_script_ends_runs_the_cluster_until_the_last_worker_exits(cluster_program: Programs) -> None:
    program = cluster_program("implicit", "returns")
    ended = program.finish()
    events = [fact["event"] for fact in ended.facts]
    assert events[0] == "end of script"
    assert events.count("exit") == 2
    assert events[-1] == "atexit", "atexit functions come after the cluster's end"
    assert ended.returncode == 0


def test_an_exit_handler_may_fork_when_the_primarys_script_has_ended(cluster_program: Programs) -> None:
    facts = cluster_program("implicit_respawn").finish().facts
    assert [(fact["worker"], fact["code"]) for fact in facts] == [(1, 1), (2, 2), (3, 3)]


def test_a_primary_that_calls_sys_exit_runs_the_cluster_too(cluster_program: Programs) -> None:
    program = cluster_program("implicit", "exits")
    ended = program.finish()
    assert [fact["event"] for fact in ended.facts].count("exit") == 2
    assert ended.returncode == 5


def test_an_uncaught_exception_in_the_primarys_script_ends_the_workers(cluster_program: Programs) -> None:
    program = cluster_program("implicit", "raises", expects_traceback=True)
    ended = program.finish()  # fails if a worker is left
    assert ended.returncode == 1
    assert "LookupError: in the primary" in ended.stderr
    assert not [fact for fact in ended.facts if fact["event"] == "exit"]


def test_an_excepthook_may_choose_the_status_with_which_the_primary_ends(cluster_program: Programs) -> None:
    ended = cluster_program("implicit", "raises", 42).finish()  # fails if a worker is left
    assert (ended.returncode, ended.stderr) == (42, "")


# ---- Roles


def test_the_primarys_functions_are_refused_in_a_worker(cluster_program: Programs) -> None:
    program = cluster_program("wrong_role")
    facts = program.finish().facts
    in_worker = [fact for fact in facts if fact.get("worker") == 1]
    refused = {fact["name"]: fact["error"] for fact in in_worker if fact["event"] == "refused"}
    names = "fork", "workers", "setup_primary", "disconnect", "run", "serve", "fileno", "dispatch", "scheduling_policy"
    assert refused == dict.fromkeys(names, "NotPrimaryError")
    assert all(fact["name"] in fact["text"] for fact in in_worker if fact["event"] == "refused")
    assert not [fact for fact in facts if fact["event"] == "allowed"]


def test_a_workers_functions_are_refused_in_the_primary(cluster_program: Programs) -> None:
    program = cluster_program("wrong_role")
    facts = program.finish().facts
    refused = {f["name"]: f["error"] for f in facts if f["event"] == "refused" and "worker" not in f}
    assert refused == dict.fromkeys(("send", "disconnect", "on"), "NotWorkerError")
    connected = next(fact for fact in facts if fact["event"] == "connected")
    assert connected["connected"] is False
    looked_at = next(fact for fact in facts if fact["event"] == "looked_at")
    assert (looked_at["same"], looked_at["unwrapped"]) == (True, True)


def test_the_role_is_primary_in_the_primary_and_worker_in_a_worker(cluster_program: Programs) -> None:
    program = cluster_program("wrong_role")
    primary, worker = [fact for fact in program.finish().facts if fact["event"] == "role"]
    assert (primary["is_primary"], primary["is_worker"], primary["own"]) == (True, False, None)
    assert (worker["is_primary"], worker["is_worker"]) == (False, True)
    assert worker["own"].startswith(f"<Worker 1 pid {worker['pid']} ")


def test_deprecated_names_warn_and_mean_the_same(cluster_program: Programs) -> None:
    program = cluster_program("aliases")
    facts = program.finish().facts
    warned = [(fact["name"], fact["value"], fact["by"]) for fact in facts if fact["event"] == "warned"]
    once_here = [["DeprecationWarning", True]]
    assert sorted(warned, key=str) == sorted(
        [
            ("is_master", True, once_here),
            ("is_master", False, once_here),
            ("setup_master", None, once_here),
            ("suicide", False, once_here),
        ],
        key=str,
    )
    assert next(fact for fact in facts if fact["event"] == "settings")["graceful_timeout"] == 7


# ---- Which script a worker runs


def test_settings_that_are_refused_change_nothing_and_are_named(cluster_program: Programs) -> None:
    program = cluster_program("bad_settings")
    facts = program.finish().facts
    assert not [fact for fact in facts if fact["event"] == "taken"]
    refused = [fact for fact in facts if fact["event"] == "refused"]
    assert all(fact["same"] for fact in refused)
    errors: list[tuple[list[str], str]] = [(fact["names"], fact["error"]) for fact in refused]
    assert errors == [
        (["colour"], "TypeError"),
        (["silent"], "TypeError"),
        (["args"], "TypeError"),
        (["graceful_timeout"], "TypeError"),
        (["graceful_timeout"], "ValueError"),
        (["serialization"], "ValueError"),
        (["stdio"], "ValueError"),
        (["exec_argv"], "ValueError"),
        (["max_pending"], "ValueError"),
    ]
    environments = [(fact["error"], fact["named"]) for fact in facts if fact["event"] == "refused environment"]
    assert environments == [("TypeError", True)] + 3 * [("ValueError", True)]


# ---- The scheduling policy


@pytest.mark.parametrize("freezer", ["fork", "setup_primary"])
def test_the_scheduling_policy_is_frozen_by_the_first(freezer: str, cluster_program: Programs) -> None:
    program = cluster_program("policy", freezer)
    default, *rest = program.finish().facts
    assert (default["policy"], default["names"]) == ("rr", ["rr", "none", "rr", "none"])
    told: list[tuple[Any, ...]] = [(fact["event"], fact["policy"], fact.get("error")) for fact in rest]
    assert told == [
        ("refused", "fair", "ValueError"),
        ("policy", "rr", None),
        ("policy", "none", None),
        ("policy", "rr", None),
        ("refused", "none", "RuntimeError"),
        ("policy", "rr", None),
    ]
    assert "fork" in rest[-2]["text"]


def test_the_scheduling_policy_comes_from_the_environment(cluster_program: Programs) -> None:
    for policy in ("rr", "none"):
        program = cluster_program("policy", "fork", env={"PYCLUSTER_SCHED_POLICY": policy})
        assert program.wait_for("default")["policy"] == policy
        program.finish(PATIENCE_S)


def test_a_wrong_scheduling_policy_in_the_environment_is_a_value_error_that_names_it(
    cluster_program: Programs,
) -> None:
    program = cluster_program("policy", "fork", env={"PYCLUSTER_SCHED_POLICY": "fastest"}, expects_traceback=True)
    ended = program.finish()
    assert ended.returncode == 1
    assert "ValueError" in ended.stderr
    assert "PYCLUSTER_SCHED_POLICY" in ended.stderr
    assert "'fastest'" in ended.stderr


def test_the_tests_run_the_interpreter_that_programs_run(cluster_program: Programs) -> None:
    program = cluster_program.add(Program("-c", "import sys; print(sys.executable)"))
    assert program.wait_for_line(".") == sys.executable


@pytest.mark.parametrize("address", [True, 1.5, [80]])
def test_listen_refuses_what_is_no_address(address: object) -> None:
    with pytest.raises(TypeError, match=re.escape(repr(address))):
        cluster.listen(address)  # type: ignore[arg-type]
