"""Who gets a connection: the balancer by itself (programs/balance_cases.py), and whole programs under load."""

import contextlib
import errno
import functools
import os
import signal

import pytest

from harness import Case, Programs, connect, free_port, is_stopped, read_all, run_case, wait_until
from load import connections
from puppets import Start, who_answers, worker_in


@pytest.fixture
def balance_case(cluster_program: Programs) -> Case:
    """Run one of balance_cases.py; returns what it tells."""
    return functools.partial(run_case, cluster_program, "balance_cases")


# ---- Turns


def test_connections_one_after_another_go_round_strictly(balance_case: Case) -> None:
    assert balance_case("one_after_another")["workers"] == [i % 4 for i in range(22)]


def test_a_burst_is_shared_evenly(balance_case: Case) -> None:
    assert balance_case("in_a_burst")["taken"] == [25, 25, 25, 25]


def test_workers_may_come_and_go_and_the_others_take_turns(balance_case: Case) -> None:
    fact = balance_case("workers_come_and_go")
    assert fact["before"] == [0, 1, 0, 1]
    assert sorted(fact["joined"]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert set(fact["left"]) == {1, 2}


def test_a_worker_holds_max_pending_and_the_rest_waits_in_the_kernel(balance_case: Case) -> None:
    fact = balance_case("max_pending")
    assert fact["full"] == [2, 2]
    assert fact["one_taken"] == [2, 3]
    assert fact["all_taken"]
    assert fact["backlog"] == 0


def test_a_full_listener_does_not_hold_up_another_one(balance_case: Case) -> None:
    fact = balance_case("another_listener_is_full")
    assert fact["workers"] == [0] * 5
    assert fact["backlog"] == 4


# ---- Workers that are gone or blocked


def test_connections_of_a_worker_that_is_gone_go_to_the_others(balance_case: Case) -> None:
    fact = balance_case("a_worker_is_gone")
    assert fact["dispatched"][0] == 0
    assert all(3 <= dispatched <= 6 for dispatched in fact["dispatched"][1:])
    assert fact["all_there"]
    assert fact["lost"] == 0


def test_connections_of_the_last_worker_wait_for_the_next_one_in_order(balance_case: Case) -> None:
    fact = balance_case("the_last_worker_is_gone")
    assert fact["in_order"]
    assert fact["dispatched"] == [4]
    assert fact["of_the_dead"] == 0


def test_a_blocked_workers_connection_goes_to_an_idle_one_until_it_accepts_again(balance_case: Case) -> None:
    fact = balance_case("a_blocked_worker")
    assert fact["moved"]
    assert fact["taken_back"] == 1
    assert fact["probed"]
    assert fact["meanwhile"] == [0, 4]
    assert fact["error"] == ["BlockingIOError", errno.EAGAIN]
    assert fact["returned"]
    assert fact["lost"] == 0


def test_a_probe_is_no_connection_for_accept_many(balance_case: Case) -> None:
    fact = balance_case("a_blocked_worker_that_takes_all_at_once")
    assert fact["moved"] == 2
    assert fact["probed"]
    assert fact["many"] == []
    assert fact["returned"]


def test_all_that_a_blocked_worker_holds_goes_to_an_idle_one(balance_case: Case) -> None:
    fact = balance_case("a_blocked_worker_with_many")
    assert fact["taken_back"] == 5
    assert fact["dispatched"] == [0, 10]
    assert fact["all_there"]


def test_connections_stay_where_they_are_when_all_workers_are_blocked(balance_case: Case) -> None:
    fact = balance_case("all_workers_are_blocked")
    assert fact["settled"]
    assert fact["dispatched"] == [3, 3]
    assert fact["taken_back"] == 0


def test_the_first_to_accept_again_gets_what_waits_for_all(balance_case: Case) -> None:
    fact = balance_case("all_are_blocked_and_one_accepts_again")
    assert fact["settled"]
    assert fact["dispatched"] == [3, 3, 3]
    assert fact["all_taken"]
    assert fact["lost"] == 0


def test_a_worker_that_sleeps_beside_its_connections_is_known_at_once_and_one_that_runs_is_not(
    balance_case: Case,
) -> None:
    assert balance_case("a_worker_that_sleeps")["moved"] == [True, False, False]


def test_the_less_taking_back_helps_the_longer_it_waits(balance_case: Case) -> None:
    fact = balance_case("all_workers_sleep")
    assert fact["taken_back"] == 3
    assert fact["doubled"]
    assert fact["restored"]


def test_a_worker_that_shuts_its_channel_down_holds_nothing_up(balance_case: Case) -> None:
    fact = balance_case("a_worker_shuts_its_channel_down")
    assert fact["all_there"]
    assert fact["settled"]
    assert fact["after"] == 2
    assert fact["lost"] == 0


# ---- A listening socket that blocks


def test_a_worker_that_lets_the_listening_socket_block_and_shuts_its_channel_down_holds_nothing_up(
    balance_case: Case,
) -> None:
    fact = balance_case("blocking_when_a_worker_shuts_its_channel_down")
    assert fact["settled"]
    assert fact["lost"] == 0


def test_a_listener_whose_socket_a_worker_lets_block_can_be_closed(balance_case: Case) -> None:
    assert balance_case("blocking_when_the_listener_closes")["taken"] == [1, 1]


# ---- Closing


def test_what_the_kernel_has_accepted_is_delivered_when_the_listener_closes(balance_case: Case) -> None:
    fact = balance_case("closing_the_listener")
    assert fact["taken"] == [4, 4]
    assert fact["refused"] == ["ConnectionRefusedError", errno.ECONNREFUSED]
    assert fact["lost"] == 0


def test_a_blocked_worker_gets_nothing_when_the_listener_closes_and_another_one_works(balance_case: Case) -> None:
    fact = balance_case("closing_the_listener_while_a_worker_is_blocked")
    assert fact["dispatched"] == [0, 10]
    assert fact["taken"] == 10
    assert fact["lost"] == 0


def test_what_no_worker_takes_of_a_closed_listener_counts_for_none(balance_case: Case) -> None:
    fact = balance_case("closing_channels_after_the_listener")
    assert fact["before"] == [3, 3]
    assert fact["of_the_dead"] == 1


def test_what_a_dead_worker_left_is_delivered_too_when_the_listener_closes(balance_case: Case) -> None:
    fact = balance_case("closing_the_listener_with_orphans")
    assert fact["taken"] == 4
    assert fact["lost"] == 0


def test_closing_leaves_no_descriptor(balance_case: Case) -> None:
    # The mapping of the region, made in the first round, keeps none.
    assert balance_case("closing_everything")["left"] == [[], []]


# ---- Sleep


def test_an_idle_balancer_sleeps(balance_case: Case) -> None:
    fact = balance_case("idle")
    assert fact["settled"]
    assert fact["wakeups"] == 0


def test_a_balancer_with_nothing_to_do_but_wait_looks_seldom(balance_case: Case) -> None:
    assert balance_case("full")["wakeups"] <= 25


def test_a_primary_without_descriptors_rests_and_goes_on_by_itself(balance_case: Case) -> None:
    fact = balance_case("out_of_descriptors")
    assert fact["failing"]
    assert fact["wakeups"] <= 100  # in half a second: twice what a rest of 20 ms and its tick come to
    assert fact["resumed"]
    assert fact["lost"] == 0


@pytest.mark.parametrize("family", ["AF_INET", "AF_UNIX"])
def test_a_listening_socket_that_is_shut_down_wakes_nobody_for_ever(balance_case: Case, family: str) -> None:
    fact = balance_case("shut_down", family)
    assert fact["wakeups"] <= 100  # in half a second: twice what a rest of 20 ms and its tick come to
    assert fact.get("served_by", 0) == 0


# ---- Workers that lie


def test_rubbish_about_what_was_consumed_harms_no_connection_of_others(balance_case: Case) -> None:
    fact = balance_case("a_lying_worker_that_accepts")
    assert fact["served"] == fact["rounds"]


def test_a_worker_that_lies_and_accepts_nothing_does_not_starve_the_others(balance_case: Case) -> None:
    fact = balance_case("a_lying_worker_that_accepts_nothing")
    assert fact["served"] == 6
    assert fact["all_taken"]
    assert fact["lost"] == 0


def test_a_probe_is_not_counted_as_a_connection_of_a_dead_worker(balance_case: Case) -> None:
    fact = balance_case("a_blocked_worker_is_gone")
    assert fact["of_the_dead"] == fact["taken"] == 2


def test_what_comes_for_workers_that_have_plenty_is_handed_over_in_turn(balance_case: Case) -> None:
    fact = balance_case("plenty")
    assert fact["taken"] == [20, 20]
    assert fact["lost"] == 0


def test_a_worker_whose_numbers_somebody_has_written_over_is_served(balance_case: Case) -> None:
    fact = balance_case("overwritten_numbers")
    assert fact["served"] == fact["rounds"]
    assert fact["lost"] == 0


def test_a_worker_that_takes_more_than_its_buffer_holds_does_not_hold_up_the_others(balance_case: Case) -> None:
    fact = balance_case("a_worker_that_hoards")
    assert fact["all_placed"]
    assert fact["given"] > 200


# ---- Whole programs


def test_connections_that_are_kept_open_are_shared_evenly(start: Start) -> None:
    port = free_port()
    cluster = start(workers=8)
    cluster.serve("keep_alive", port, *range(1, 9))
    with contextlib.ExitStack() as stack:

        def connect_64() -> list[int]:
            stack.pop_all().close()
            owners = []
            for _ in range(64):
                client = stack.enter_context(connect(port))
                client.sendall(b"hello\n")
                owners.append(worker_in(stack.enter_context(client.makefile("rb")).readline()))
            return owners

        assert cluster.shares(connect_64, *range(1, 9)) == [8] * 8
        assert wait_until(lambda: cluster.do(0, "stats")["active"] == 64)


def test_a_stopped_worker_does_not_hold_up_its_connections(start: Start) -> None:
    port = free_port()
    cluster = start()
    cluster.serve("accept_loop", port, 1, 2)
    os.kill(cluster.pid(1), signal.SIGSTOP)
    assert wait_until(lambda: is_stopped(cluster.pid(1)))  # or it could still accept one
    cluster.do(0, "take_back_from_sleepers_only")
    assert [who_answers(port) for _ in range(10)] == [2] * 10
    os.kill(cluster.pid(1), signal.SIGCONT)
    assert wait_until(lambda: who_answers(port) == 1)


def test_a_worker_that_is_busy_does_not_hold_up_its_connections(start: Start) -> None:
    port = free_port()
    cluster = start()
    for worker in (1, 2):
        cluster.do(worker, "listen", port=port)
    cluster.do(2, "serve_in_a_thread")
    cluster.begin(1, "sleep", seconds=3600)
    assert [who_answers(port) for _ in range(10)] == [2] * 10
    assert cluster.do(0, "figures")["lost"] == 0


def test_a_worker_without_descriptors_loses_no_connection(start: Start) -> None:
    port = free_port()
    cluster = start()
    for worker in (1, 2):
        cluster.do(worker, "listen", port=port)
    cluster.do(2, "serve_in_a_thread")
    limit = cluster.do(1, "lower_limit", spare=0)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(6)]
        with pytest.raises(OSError, match="Too many open files"):
            cluster.do(1, "accept")
        for client in clients:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert [read_all(client) for client in clients] == [b"worker 2"] * 6
    cluster.do(1, "set_limit", soft=limit)
    cluster.do(1, "serve_in_a_thread")
    assert wait_until(lambda: who_answers(port) == 1)


def test_a_primary_without_descriptors_serves_again_when_it_has_some(start: Start) -> None:
    port = free_port()
    cluster = start()
    cluster.serve("accept_loop", port, 1, 2)
    limit = cluster.do(0, "lower_limit", spare=0)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(4)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert wait_until(lambda: cluster.do(0, "figures")["accept_failures"] > 0)
        cluster.do(0, "set_limit", soft=limit)
        assert {worker_in(read_all(client)) for client in clients} <= {1, 2}


@pytest.mark.parametrize("policy", ["rr", "none"])
@pytest.mark.parametrize("kind", ["threading_http", "start_server", "accept_loop", "in_a_thread"])
def test_no_request_fails_while_workers_are_replaced_one_by_one(start: Start, kind: str, policy: str) -> None:
    port = free_port()
    cluster = start(policy=policy)
    cluster.serve(kind, port, 1, 2)
    with connections(port, 4) as load:
        for old, new in ((1, 3), (2, 4), (3, 5)):
            cluster.fork()
            cluster.serve(kind, port, new)
            assert load.wait_for_answers_of(new), load.failures
            cluster.do(0, "disconnect", worker=old)
            assert cluster.wait_for_exit(old) == (0, None)
    assert load.failures == []
    assert len(load.answers) > 20


def test_no_request_fails_while_a_worker_that_has_accepted_nothing_is_killed(start: Start) -> None:
    port = free_port()
    cluster = start(workers=1)
    cluster.serve("accept_loop", port, 1)
    with connections(port, 4) as load:
        for idle in (2, 3, 4):
            cluster.fork()
            cluster.do(idle, "listen", port=port)
            assert wait_until(lambda idle=idle: str(idle) in cluster.do(0, "stats")["workers"])  # type: ignore[misc]
            assert load.wait_for(5)
            os.kill(cluster.pid(idle), signal.SIGKILL)
            cluster.wait_for_exit(idle)
    assert load.failures == []
    assert set(load.answers) == {1}
