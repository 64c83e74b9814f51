"""Slots of workers, and `settings.respawn`: who comes in the place of whom, and when the cluster gives up.

The pauses of a worker that crashes in a loop, and the stop in one, are shown in test_cli.py.
"""

import errno
import os
import signal
import time

import pytest

from harness import Programs, wait_until
from puppets import Puppets, Start


def slots(cluster: Puppets) -> dict[str, int]:
    """The slot of each living worker, by id."""
    return {worker: stats["slot"] for worker, stats in cluster.do(0, "stats")["workers"].items()}


def kill(cluster: Puppets, worker: int) -> None:
    os.kill(cluster.pid(worker), signal.SIGKILL)
    cluster.wait_for_exit(worker)


def wait_for_successor(cluster: Puppets, worker: int) -> None:
    cluster.program.wait_for("ready", worker=worker)


# ---- Slots


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_slot_is_the_lowest_number_that_no_living_worker_has(start: Start, method: str) -> None:
    cluster = start(workers=3, start_method=method)
    assert slots(cluster) == {"1": 0, "2": 1, "3": 2}
    kill(cluster, 2)
    cluster.fork(2)
    assert slots(cluster) == {"1": 0, "3": 2, "4": 1, "5": 3}
    assert [cluster.do(worker, "slot_and_environment", name="")[0] for worker in (1, 3, 4, 5)] == [0, 2, 1, 3]
    assert cluster.do(4, "stats")["workers"]["5"]["slot"] == 3


def test_the_slot_of_a_worker_that_is_to_come_is_given_to_nobody_else(cluster_program: Programs) -> None:
    program = cluster_program("forks_meanwhile")
    program.finish()
    assert program.wait_for("stats")["slots"] == {"2": 1, "3": 0}


def test_a_signal_handler_may_fork_while_the_script_forks(cluster_program: Programs) -> None:
    program = cluster_program("forks_in_a_handler")
    assert program.finish().returncode == 0
    forked = program.wait_for("forked")
    assert (forked["first"], forked["slots"]) == (1, {"1": 0, "2": 1})
    opened = {fact["worker"]: fact["descriptors"] for fact in program.facts_of("open")}
    assert opened[2] == opened[1] + 1  # the first one's pidfd, which no variable has yet
    assert sorted((fact["worker"], fact["code"]) for fact in program.facts_of("exit")) == [(1, 0), (2, 0)]


# ---- Who is replaced


def test_a_successor_has_the_environment_as_it_was_at_the_fork(cluster_program: Programs) -> None:
    program = cluster_program("one_environment")
    assert program.finish().returncode == 0
    assert sorted(fact["shard"] for fact in program.facts_of("shard")) == ["one", "one", "zero", "zero"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_successor_of_a_crashed_worker_has_its_slot_and_its_environment(start: Start, method: str) -> None:
    cluster = start(workers=1, respawn="on-failure", start_method=method)
    assert cluster.do(0, "fork", env={"NUMBER": "two"}) == [2]
    cluster.program.wait_for("ready", worker=2)
    kill(cluster, 2)
    wait_for_successor(cluster, 3)
    assert cluster.do(3, "slot_and_environment", name="NUMBER") == [1, "two"]
    assert slots(cluster) == {"1": 0, "3": 1}
    report = f"(pid {cluster.pid(2)}) was killed by SIGKILL; another one starts in 0.1 s"
    assert wait_until(lambda: report in cluster.program.stderr)


def test_by_default_nobody_is_replaced(start: Start) -> None:
    cluster = start(workers=1)
    kill(cluster, 1)
    assert not cluster.do(0, "waits_for_workers")


@pytest.mark.parametrize(("respawn", "replaced"), [("on-failure", False), ("always", True)])
def test_a_worker_that_has_done_its_work_is_replaced_only_by_always(start: Start, respawn: str, replaced: bool) -> None:
    cluster = start(workers=1, respawn=respawn)
    cluster.begin(1, "end", status=0)
    cluster.wait_for_exit(1)
    if replaced:
        wait_for_successor(cluster, 2)
    assert not cluster.do(0, "waits_for_workers")


@pytest.mark.parametrize(
    ("who", "what", "arguments"),
    [
        (0, "disconnect", {"worker": 1}),
        (0, "disconnect_all", {}),
        (0, "kill", {"worker": 1, "signal": "SIGTERM"}),
        (1, "leave", {}),
    ],
)
def test_a_worker_that_was_asked_to_end_is_not_replaced(
    start: Start, who: int, what: str, arguments: dict[str, object]
) -> None:
    cluster = start(workers=1, respawn="always")
    cluster.begin(who, what, **arguments)
    cluster.wait_for_exit(1)
    assert not cluster.do(0, "waits_for_workers")


def test_nobody_comes_any_more_once_all_are_disconnected(start: Start) -> None:
    cluster = start(workers=1, respawn="on-failure")
    cluster.do(0, "set_constant", module="respawn", name="FIRST_PAUSE_S", value=10)  # nobody comes meanwhile
    os.kill(cluster.pid(1), signal.SIGKILL)
    cluster.wait_for_exit(1)
    cluster.do(0, "disconnect_all")
    assert not cluster.do(0, "waits_for_workers")
    assert cluster.fork() == [2], "till somebody forks"
    cluster.do(0, "set_constant", module="respawn", name="FIRST_PAUSE_S", value=0.1)
    kill(cluster, 2)
    wait_for_successor(cluster, 3)


def test_a_worker_that_cannot_be_started_comes_later(start: Start) -> None:
    cluster = start(workers=1, respawn="on-failure")
    cluster.do(0, "set_constant", module="respawn", name="FEWEST_TRIES", value=100)  # it is not to give up meanwhile
    limit = cluster.do(0, "lower_limit", spare=0)
    kill(cluster, 1)
    reason = f"cannot start a worker: [Errno {errno.EMFILE}]"
    deadline = time.monotonic() + 10
    while reason not in cluster.program.stderr and time.monotonic() < deadline:
        cluster.do(0, "waits_for_workers")
    cluster.do(0, "set_limit", soft=limit)
    assert reason in cluster.program.stderr
    wait_for_successor(cluster, 2)
    assert slots(cluster) == {"2": 0}


# ---- Giving up


@pytest.mark.parametrize(("how", "status"), [("run", 3), ("serve", 3), ("implicitly", 3), ("caught", 0)])
def test_when_no_worker_ever_comes_up_the_cluster_ends_with_a_status_of_its_own(
    cluster_program: Programs, how: str, status: int
) -> None:
    program = cluster_program("never_up", how, 2)
    ended = program.finish()
    assert ended.returncode == status
    exits = program.facts_of("exit")
    assert [fact["code"] for fact in exits][:3] == [5, 5, 5]
    assert len(exits) <= 4, "one that ran already may have been told to end"
    assert {fact["slot"] for fact in exits} == {0, 1}
    assert "giving up: no worker has come up in 3 tries" in ended.stderr
    assert [fact["code"] for fact in program.facts_of("caught")] == ([3] if how == "caught" else [])
    assert program.facts_of("atexit")
