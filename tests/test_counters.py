"""Counters and statistics in shared memory, as every process of the cluster sees them."""

import contextlib
import os
import signal
import time

import pytest

from harness import Programs, connect, free_port, wait_until
from puppets import Puppets, Start


def kill(cluster: Puppets, worker: int) -> None:
    os.kill(cluster.pid(worker), signal.SIGKILL)
    cluster.wait_for_exit(worker)


# ---- Names


def test_a_name_has_1_to_63_bytes_of_utf_8(start: Start) -> None:
    cluster = start(workers=0)
    for name in ("a", "x" * 63, "ü" * 31 + "x", "with spaces", "\0", "🐍" * 15):
        cluster.do(0, "add", name=name)
        assert cluster.do(0, "read", name=name)["value"] == 1
    for name in ("", "x" * 64, "ü" * 32, "🐍" * 16):
        with pytest.raises(RuntimeError, match=r"ValueError.*1 to 63 bytes"):
            cluster.do(0, "add", name=name)


def test_there_are_max_counters_names_and_one_more_is_a_cluster_error(start: Start) -> None:
    cluster = start(workers=2, max_counters=3)
    cluster.do(0, "add", name="a")
    cluster.do(1, "add", name="b")
    cluster.do(2, "add", name="c")
    for who in (0, 1, 2):
        with pytest.raises(RuntimeError, match=r"ClusterError.*max_counters is 3"):
            cluster.do(who, "add", name="d")
        for name in ("a", "b", "c"):
            cluster.do(who, "add", name=name)
    assert [cluster.do(0, "read", name=name)["value"] for name in ("a", "b", "c")] == [4, 4, 4]


def test_the_number_of_counters_is_fixed_once_there_is_one(cluster_program: Programs) -> None:
    program = cluster_program("count_alone")
    facts = program.wait_for("facts")
    assert program.finish().returncode == 0
    assert facts["fixed"] == "ValueError: max_counters is fixed once there is a worker or a counter; set it before"


def test_a_process_without_a_cluster_may_count(cluster_program: Programs) -> None:
    program = cluster_program("count_alone")
    facts = program.wait_for("facts")
    assert program.finish().returncode == 0
    assert facts["value"] == 5
    assert facts["by_worker"] == {"0": 5}
    assert facts["same"]
    assert facts["workers"] == []


# ---- Totals


def test_a_total_is_over_all_processes_dead_ones_included(start: Start) -> None:
    cluster = start()
    cluster.do(0, "add", name="hits", n=1)
    cluster.do(1, "add", name="hits", n=10)
    cluster.do(2, "add", name="hits", n=100)
    for who in (0, 1, 2):
        assert cluster.do(who, "read", name="hits") == {
            "value": 111,
            "by_worker": {"0": 1, "1": 10, "2": 100},
            "text": "<Counter 'hits': 111>",
        }
    kill(cluster, 1)
    cluster.fork()
    cluster.do(3, "add", name="hits", n=1000)
    for who in (0, 2, 3):
        said = cluster.do(who, "read", name="hits")
        assert said["value"] == 1111
        assert said["by_worker"] == {"0": 1, "2": 100, "3": 1000}


def test_the_primary_is_listed_only_if_it_has_counted(start: Start) -> None:
    cluster = start()
    cluster.do(1, "add", name="hits")
    assert cluster.do(0, "read", name="hits")["by_worker"] == {"1": 1, "2": 0}


def test_a_counter_may_go_down_and_below_zero(start: Start) -> None:
    cluster = start(workers=1)
    cluster.do(1, "add", name="open", n=-3)
    cluster.do(0, "add", name="open", n=1)
    assert cluster.do(0, "read", name="open")["value"] == -2
    kill(cluster, 1)
    assert cluster.do(0, "read", name="open")["value"] == -2


def test_many_processes_may_name_and_add_at_once_and_nothing_is_lost(start: Start) -> None:
    cluster = start(workers=6)
    names = [f"name {i}" for i in range(20)]
    counting = [cluster.begin(worker, "add_all", names=names, times=300) for worker in range(1, 7)]
    for seq in counting:
        cluster.result(seq)
    assert [cluster.do(0, "read", name=name)["value"] for name in names] == [6 * 300] * 20


def test_a_total_stays_right_while_dead_workers_are_added_to_it(start: Start) -> None:
    cluster = start(workers=6)
    for worker in range(1, 7):
        cluster.do(worker, "add", name="hits", n=1000)
    watching = cluster.begin(1, "watch", name="hits")
    for worker in range(2, 7):
        kill(cluster, worker)
    cluster.do(0, "add", name="stop watching")
    assert cluster.result(watching) == [6000]


# ---- Statistics


def test_stats_tell_of_each_worker_and_of_all(start: Start) -> None:
    started = time.time()
    cluster = start()
    port = free_port()
    cluster.do(1, "listen", port=port)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(5)]
        assert wait_until(lambda: cluster.do(0, "stats")["pending"] == 5)
        for _ in range(3):
            cluster.do(1, "accept", keep=True)
        said = cluster.do(0, "stats")
        one, two = said["workers"]["1"], said["workers"]["2"]
        assert (one["id"], one["pid"], one["state"]) == (1, cluster.pid(1), "listening")
        assert (two["id"], two["pid"], two["state"]) == (2, cluster.pid(2), "online")
        assert (one["dispatched"], one["accepted"], one["pending"]) == (5, 3, 2)
        assert (two["dispatched"], two["accepted"], two["pending"], two["active"]) == (0, 0, 0, 0)
        assert one["active"] == 3
        assert all(started - 1 < worker["started_at"] < time.time() + 1 for worker in (one, two))
        assert (said["dispatched"], said["accepted"], said["pending"], said["active"]) == (5, 3, 2, 3)
        # A worker sees the same: nobody is asked.
        assert cluster.do(2, "stats")["workers"]["1"]["accepted"] == 3
        cluster.do(1, "drop")
        assert wait_until(lambda: cluster.do(0, "stats")["active"] == 0)
        assert cluster.do(0, "stats")["accepted"] == 3
        assert len(clients) == 5


def test_stats_count_the_users_messages(start: Start) -> None:
    cluster = start()
    cluster.program.wait_for("online", worker=2)
    before = cluster.do(0, "stats")
    for _ in range(3):
        cluster.do(1, "send", text="hello")  # it takes one message to make it send one
    assert len(cluster.program.wait_for_all(3, "message", worker=1)) == 3
    after = cluster.do(0, "stats")
    assert after["workers"]["1"]["messages_in"] - before["workers"]["1"]["messages_in"] == 3
    assert after["workers"]["1"]["messages_out"] - before["workers"]["1"]["messages_out"] == 3
    assert after["workers"]["2"] == before["workers"]["2"]
    assert after["messages_out"] - before["messages_out"] == 3


def test_totals_keep_what_dead_workers_have_done(start: Start) -> None:
    cluster = start()
    port = free_port()
    cluster.do(1, "listen", port=port)
    with connect(port), connect(port):
        cluster.do(1, "accept")
        cluster.do(1, "accept", keep=True)
        before = cluster.do(0, "stats")
        kill(cluster, 1)
        after = cluster.do(2, "stats")
    assert list(after["workers"]) == ["2"]
    assert (after["dispatched"], after["accepted"], after["pending"], after["active"]) == (2, 2, 0, 0)
    assert after["messages_in"] >= before["messages_in"]


def test_what_was_taken_back_is_counted_where_it_went(start: Start) -> None:
    cluster = start()
    cluster.pass_over(1, 2)
    said = cluster.do(0, "stats")
    assert [said["workers"][worker]["dispatched"] for worker in ("1", "2")] == [0, 2]
    assert (said["dispatched"], said["accepted"], said["pending"]) == (2, 2, 0)


def test_a_worker_is_no_longer_listed_once_it_has_exited_and_its_slot_is_used_again(start: Start) -> None:
    cluster = start(workers=2, max_workers=2)
    for old in (1, 2, 3):
        kill(cluster, old)
        cluster.fork()
    assert list(cluster.do(0, "stats")["workers"]) == ["4", "5"]
    with pytest.raises(RuntimeError, match=r"ClusterError.*max_workers"):
        cluster.do(0, "fork")


def test_the_region_leaves_no_descriptor_in_workers_and_one_in_the_primary(start: Start) -> None:
    cluster = start(workers=1)
    cluster.do(1, "add", name="hits")
    held = [[name for name in cluster.do(who, "descriptors") if "memfd" in name] for who in (0, 1)]
    assert [len(names) for names in held] == [1, 0]
