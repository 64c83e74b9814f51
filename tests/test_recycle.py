"""Recycling: workers that have served enough, are old or too large are replaced, and nothing is lost by it."""

import json
import os
import re
import signal
from typing import Any

import pytest

from harness import Program, Programs, free_port, request, wait_until
from load import mixed
from puppets import Puppets, Start, who_answers
from pycluster import Settings
from pycluster.recycle import JITTER, Limits

REQUEST = b"GET / HTTP/1.0\r\n\r\n"


def slots(cluster: Puppets) -> dict[str, int]:
    """The slot of each living worker, by id."""
    return {worker: stats["slot"] for worker, stats in cluster.do(0, "stats")["workers"].items()}


def use_up(port: int, count: int) -> None:
    for _ in range(count):
        request(port, REQUEST)


def start_replacing(start: Start, **settings: Any) -> tuple[Puppets, int]:
    """A cluster of one worker, in whose place another one is to come, which does not listen yet; and the port."""
    cluster = start(workers=1, max_connections_per_worker=1, **settings)
    port = free_port()
    cluster.serve("accept_loop", port, 1)
    use_up(port, 1)
    cluster.program.wait_for("ready", worker=2)
    return cluster, port


# ---- The limits


@pytest.mark.parametrize("name", ["connections", "rss"])
def test_a_limit_is_up_to_a_tenth_lower_at_random(name: str) -> None:
    settings = Settings(max_connections_per_worker=1000, max_rss=1000)
    drawn = [getattr(Limits.draw(settings), name) for _ in range(200)]
    assert all(1000 * (1 - JITTER) < limit <= 1000 for limit in drawn)
    assert max(drawn) - min(drawn) > 1000 * JITTER / 2, "so workers do not all reach theirs at a time"


def test_without_a_limit_nothing_is_looked_at(start: Start) -> None:
    assert Limits.draw(Settings()) is None


def test_a_worker_that_has_accepted_enough_serves_until_its_successor_listens(start: Start) -> None:
    cluster = start(workers=0, max_connections_per_worker=5)
    cluster.do(0, "fork", env={"NUMBER": "one"})
    cluster.program.wait_for("ready", worker=1)
    port = free_port()
    cluster.serve("accept_loop", port, 1)
    use_up(port, 4)
    assert who_answers(port) == 1
    cluster.program.wait_for("ready", worker=2)
    assert who_answers(port) == 1
    assert slots(cluster) == {"1": 0, "2": 0}
    assert cluster.do(2, "slot_and_environment", name="NUMBER") == [0, "one"]
    cluster.serve("accept_loop", port, 2)
    assert cluster.wait_for_exit(1) == (0, None)
    assert cluster.program.wait_for("exit", worker=1)["asked"]
    assert who_answers(port) == 2
    assert slots(cluster) == {"2": 0}


def test_a_worker_that_is_old_is_replaced_though_it_listens_on_nothing(start: Start) -> None:
    cluster = start(workers=0)
    cluster.do(0, "fork_the_only_one_with", max_age=1)  # not so its successor
    assert cluster.wait_for_exit(1) == (0, None)
    assert slots(cluster) == {"2": 0}


def test_a_worker_that_stays_too_large_is_replaced(start: Start) -> None:
    cluster = start(workers=2, max_rss=200_000_000)
    cluster.do(2, "hold", size=200_000_000)
    assert cluster.program.wait_for("fork", worker=3)["workers"] == [1, 2, 3], "the new one first"
    assert slots(cluster)["3"] == 1
    assert cluster.wait_for_exit(2) == (0, None)


# ---- How many at a time


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_than_max_unavailable_are_replaced_at_a_time(start: Start, most: int) -> None:
    cluster = start(workers=3, max_connections_per_worker=2, max_unavailable=most)
    port = free_port()
    cluster.serve("accept_loop", port, 1, 2, 3)
    cluster.do(0, "never_take_back")  # two for each
    use_up(port, 6)
    for new in range(4, 4 + most):
        cluster.program.wait_for("ready", worker=new)
    assert len(slots(cluster)) == 3 + most
    cluster.serve("accept_loop", port, 4)
    old = cluster.program.wait_for("exit")["worker"]
    assert cluster.program.wait_for("ready", worker=4 + most), "the next one's turn comes with the end of the first"
    assert slots(cluster)["4"] == old - 1
    assert len(slots(cluster)) == 3 + most


# ---- What goes wrong


def test_a_successor_that_ends_before_it_is_up_leaves_the_old_one_to_serve(start: Start) -> None:
    cluster, port = start_replacing(start, respawn="on-failure")
    os.kill(cluster.pid(2), signal.SIGKILL)
    cluster.wait_for_exit(2)
    assert who_answers(port) == 1
    assert not cluster.do(0, "waits_for_workers"), "the place is taken"
    report = "is not replaced, and goes on: the new one has ended before it was up"
    assert wait_until(lambda: report in cluster.program.stderr)
    os.kill(cluster.pid(1), signal.SIGKILL)
    cluster.program.wait_for("ready", worker=3)
    assert slots(cluster) == {"3": 0}, "and its place was its own again"


def test_a_successor_that_is_not_up_in_time_is_ended(start: Start) -> None:
    cluster = start(workers=1, max_connections_per_worker=1)
    cluster.do(0, "set_constant", module="recycle", name="START_S", value=0.5)
    port = free_port()
    cluster.serve("accept_loop", port, 1)
    use_up(port, 1)
    assert cluster.wait_for_exit(2) == (0, None)
    assert who_answers(port) == 1
    report = "goes on: the new one was not up within 0.5 s; once more in 60 s"
    assert wait_until(lambda: report in cluster.program.stderr)


def test_a_reload_waits_for_the_end_of_a_replacement_and_then_replaces_the_new_one(start: Start) -> None:
    cluster, port = start_replacing(start)
    cluster.do(0, "reload")
    cluster.do(0, "stats")  # a dispatch later
    os.kill(cluster.pid(1), signal.SIGKILL)
    cluster.wait_for_exit(1)
    cluster.serve("accept_loop", port, 2)
    cluster.program.wait_for("ready", worker=3)
    cluster.serve("accept_loop", port, 3)
    assert cluster.program.wait_for("reloaded")["error"] is None
    assert cluster.wait_for_exit(2) == (0, None)
    assert slots(cluster) == {"3": 0}


@pytest.mark.parametrize("comes_up", [True, False])
def test_a_successor_takes_the_place_of_an_old_one_that_crashes_meanwhile(start: Start, comes_up: bool) -> None:
    cluster, port = start_replacing(start, respawn="on-failure")
    os.kill(cluster.pid(1), signal.SIGKILL)
    cluster.wait_for_exit(1)
    assert not cluster.do(0, "waits_for_workers")
    assert slots(cluster) == {"2": 0}
    if comes_up:
        cluster.serve("accept_loop", port, 2)
        assert who_answers(port) == 2  # and so is old itself, soon
    os.kill(cluster.pid(2), signal.SIGKILL)
    cluster.program.wait_for("ready", worker=3)
    assert "goes on" not in cluster.program.stderr


def test_a_stop_in_the_middle_ends_both(start: Start) -> None:
    cluster, _port = start_replacing(start)
    cluster.do(0, "disconnect_all")
    for worker in (1, 2):
        assert cluster.wait_for_exit(worker) == (0, None)
    assert "is not replaced" not in cluster.program.stderr


# ---- Nothing is lost


def start_recycled(programs: Programs, port: int, **settings: Any) -> Program:
    program = programs("recycled", port, json.dumps(settings))
    program.wait_for_all(3, "listening")
    return program


def test_no_request_fails_while_workers_are_recycled(cluster_program: Programs) -> None:
    port = free_port()
    program = start_recycled(cluster_program, port, max_connections_per_worker=50)
    with mixed(port, 4, requests=20) as load:
        assert wait_until(lambda: len(program.facts_of("exit")) >= 4 or load.failures)
    assert load.failures == []
    listening: set[int] = set()
    for fact in program.facts:
        if fact["event"] == "listening":
            listening.add(fact["worker"])
        elif fact["event"] == "exit":
            listening.remove(fact["worker"])
            assert len(listening) == 3, "the new one first"
    program.send_signal(signal.SIGTERM)
    ended = program.finish()
    assert ended.returncode == 0
    assert all(fact["asked"] and fact["code"] == 0 for fact in program.facts_of("exit"))
    assert max(len(fact["workers"]) for fact in program.facts_of("fork")) == 4, "one at a time"
    assert re.search(r"worker \d+ \(pid \d+\) is replaced: it has accepted \d+ connections", ended.stderr)
