"""asyncio and uvloop: a primary that serves in a loop, workers that are forked there, handlers that are coroutines."""

import importlib.util
import signal

import pytest

from harness import Fact, Programs, free_port, request

NO_UVLOOP = importlib.util.find_spec("uvloop") is None
LOOPS = ["asyncio", pytest.param("uvloop", marks=pytest.mark.skipif(NO_UVLOOP, reason="uvloop is not installed"))]


def exits(facts: list[Fact]) -> list[tuple[int, int | None]]:
    return [(fact["worker"], fact["code"]) for fact in facts if fact["event"] == "exit"]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_cluster_serves_in_a_running_loop_beside_the_users_tasks(loop: str, cluster_program: Programs) -> None:
    port = free_port()
    program = cluster_program("serving", loop, port)
    # The second worker is forked by an async handler when the first one listens; each answers once.
    program.wait_for_all(2, "listening")
    program.wait_for_all(2, "works")
    answers = {request(port)}
    program.wait_for("exit")
    answers.add(request(port))
    ended = program.finish()
    assert answers == {b"worker 1", b"worker 2"}
    assert sorted(exits(ended.facts)) == [(1, 0), (2, 0)]
    assert ended.facts[-1]["loop"] == loop
    assert ended.returncode == 0


@pytest.mark.parametrize("loop", LOOPS)
def test_asyncio_works_in_a_worker_that_was_forked_in_a_running_loop(loop: str, cluster_program: Programs) -> None:
    program = cluster_program("serving", loop, free_port())
    works = program.wait_for_all(2, "works")
    assert [(fact["output"], fact["number"]) for fact in works] == [("out\n", 7)] * 2
    program.send_signal(signal.SIGTERM)
    assert sorted(exits(program.finish().facts)) == [(1, 0), (2, 0)]


@pytest.mark.parametrize("loop", LOOPS)
def test_async_handlers_run_on_the_serving_loop(loop: str, cluster_program: Programs) -> None:
    program = cluster_program("serving", loop, free_port())
    facts = program.wait_for_all(2, "async")
    assert [(fact["ticked"], fact["same_loop"]) for fact in facts] == [(True, True)] * 2
    program.send_signal(signal.SIGINT)
    assert program.finish().returncode == 0


def test_an_async_exit_handler_may_fork_when_the_last_worker_has_gone(cluster_program: Programs) -> None:
    program = cluster_program("async_handlers", "serve", expects_traceback=True)
    facts = program.finish().facts
    assert exits(facts) == [(1, 0), (2, 0), (3, 0)]
    assert facts[-1]["event"] == "over"
    assert facts[-1]["workers"] == []


def test_what_an_async_handler_raises_is_logged(cluster_program: Programs) -> None:
    program = cluster_program("async_handlers", "serve", expects_traceback=True)
    ended = program.finish()
    assert "LookupError: after 1" in ended.stderr
    assert ended.returncode == 0


def test_an_async_handler_without_a_loop_is_logged_with_a_remedy(cluster_program: Programs) -> None:
    program = cluster_program("async_handlers", "run", expects_traceback=True)
    ended = program.finish()
    assert ended.facts[-1]["event"] == "over"
    assert "serve()" in ended.stderr
    assert "never awaited" not in ended.stderr


def test_a_serve_that_is_cancelled_leaves_the_workers_and_can_be_called_again(cluster_program: Programs) -> None:
    facts = cluster_program("cancelled").finish().facts
    [cancelled] = [fact for fact in facts if fact["event"] == "cancelled"]
    assert (cancelled["workers"], cancelled["same"]) == ([1], True)
    assert exits(facts) == [(1, 0)]
    assert facts[-1]["event"] == "over"


@pytest.mark.parametrize("loop", LOOPS)
def test_a_workers_handlers_run_on_the_loop_in_which_they_were_registered(loop: str, cluster_program: Programs) -> None:
    facts = cluster_program("worker_loop", loop).finish().facts
    handlers = {fact["kind"]: (fact["where"], fact["message"]) for fact in facts if fact["event"] == "handler"}
    assert handlers["early"] == ("pycluster-control", "go"), "there was no loop when it was registered"
    assert handlers["plain"] == ("loop in MainThread", "go")
    assert handlers["async"] == ("loop in MainThread", "go")
    [exit] = [fact for fact in facts if fact["event"] == "exit"]
    assert (exit["code"], exit["asked"]) == (0, True)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_workers_disconnect_handler_runs_on_its_loop_before_the_script_ends(
    loop: str, cluster_program: Programs
) -> None:
    facts = cluster_program("worker_loop", loop).finish().facts
    where = [fact["where"] for fact in facts if fact["event"] == "handler" and fact["kind"] == "disconnect"]
    assert where == ["loop in MainThread"]


def test_messages_that_come_while_a_loop_is_busy_wait_for_the_next_listener(cluster_program: Programs) -> None:
    program = cluster_program("once_in_a_loop")
    assert program.finish().returncode == 0
    assert program.wait_for("came")["messages"] == 3
    assert [fact["message"] for fact in program.facts_of("heard")] == ["first", "second", "third"]
