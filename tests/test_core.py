"""The core by itself, each case in a process of its own (programs/core_cases.py): accepting, sweeping, forking."""

import errno
import functools

import pytest

from harness import Case, Programs, run_case

MANY_FILES = ["OSError", errno.EMFILE]
NOTHING_THERE = ["BlockingIOError", errno.EAGAIN]


@pytest.fixture
def core_case(cluster_program: Programs) -> Case:
    """Run one of core_cases.py; returns what it tells."""
    return functools.partial(run_case, cluster_program, "core_cases")


# ---- Accepting


def test_accept_without_waiting_says_that_nothing_is_there(core_case: Case) -> None:
    assert core_case("accept_does_not_wait")["error"] == NOTHING_THERE


def test_accept_gives_up_when_its_time_is_over(core_case: Case) -> None:
    fact = core_case("accept_waits_for_a_time")
    assert fact["error"] == ["TimeoutError", None]
    assert fact["seconds"] >= 0.05


def test_accept_waits_for_a_connection_with_and_without_a_timeout(core_case: Case) -> None:
    assert core_case("accept_waits_for_a_connection")["same"]


def test_threads_that_wait_in_one_channel_take_one_connection_each(core_case: Case) -> None:
    fact = core_case("accept_in_several_threads")
    assert fact["errors"] == [[]] * 4
    assert fact["taken"] == [1, 2, 3, 4]


def test_a_thread_that_waits_in_a_channel_that_another_one_closes_receives_nothing_of_what_comes_after_it(
    core_case: Case,
) -> None:
    fact = core_case("accept_while_another_thread_closes")
    assert fact["errors"] == [["OSError", errno.EBADF]]
    assert fact["left"] == "not for accept"


def test_a_signal_handler_may_end_the_wait_of_accept_by_raising_and_not_otherwise(core_case: Case) -> None:
    fact = core_case("accept_is_interrupted_by_signals")
    assert fact["errors"] == [["InterruptedError", errno.EINTR], []]
    assert fact["handled"]


def test_accepted_descriptors_are_blocking_and_close_on_exec(core_case: Case) -> None:
    fact = core_case("accepted_descriptors")
    assert fact["blocking"] == [True, True]
    assert fact["inheritable"] == [False, False]


def test_accept_many_takes_in_order_what_one_call_brings(core_case: Case) -> None:
    fact = core_case("accept_many")
    assert sum(fact["sizes"]) == 40
    assert len(fact["sizes"]) <= 4
    assert fact["in_order"]


@pytest.mark.parametrize("family", ["ipv4", "ipv6", "unix"])
def test_addresses_are_what_a_plain_accept_gives(core_case: Case, family: str) -> None:
    fact = core_case(f"addresses_{family}")
    assert fact["given"] == fact["real"]
    assert fact["given"]


# ---- No descriptor left


def test_a_connection_waits_until_there_is_a_descriptor_for_it(core_case: Case) -> None:
    fact = core_case("no_descriptor")
    assert fact["errors"] == [MANY_FILES] * 4
    assert fact["afterwards"] == 3


def test_the_last_descriptor_is_used_and_no_connection_is_lost(core_case: Case) -> None:
    fact = core_case("one_descriptor")
    assert (fact["taken"], fact["error"], fact["afterwards"]) == (1, MANY_FILES, 2)


@pytest.mark.parametrize("below", ["1", "2", "15", "16", "17"])
def test_no_connection_is_lost_when_only_a_descriptor_among_others_is_free(core_case: Case, below: str) -> None:
    fact = core_case("one_descriptor_below_others", below)
    assert (fact["taken"], fact["error"], fact["afterwards"]) == (1, MANY_FILES, 2)


@pytest.mark.parametrize("accept", ["accept", "accept_many"])
def test_no_connection_is_lost_when_files_take_all_descriptors_between_two_accepts(
    core_case: Case, accept: str
) -> None:
    fact = core_case("descriptors_gone_meanwhile", accept)
    assert (fact["error"], fact["taken"]) == (MANY_FILES, 4)


@pytest.mark.parametrize("timeout", ["none", "some"])
def test_no_connection_is_lost_when_files_take_all_descriptors_while_accept_sleeps(
    core_case: Case, timeout: str
) -> None:
    fact = core_case("descriptors_gone_while_accepting", timeout)
    assert (fact["errors"], fact["afterwards"]) == ([MANY_FILES] * 2, 1)


def test_no_connection_is_lost_when_the_first_accept_finds_few_descriptors(core_case: Case) -> None:
    fact = core_case("few_descriptors_at_first")
    assert (fact["error"], fact["taken"], fact["afterwards"]) == (MANY_FILES, 4, 4)


def test_accept_stays_quiet_when_the_primary_is_gone(core_case: Case) -> None:
    fact = core_case("end_of_stream")
    assert fact["errors"] == [NOTHING_THERE, ["TimeoutError", None]]
    assert fact["many"] == []


def test_a_cell_that_no_slot_has_is_refused(core_case: Case) -> None:
    assert "64" in core_case("cell_out_of_range")["said"]


# ---- What is still open


def test_sweep_counts_the_connections_that_are_open_whatever_their_peers_do(core_case: Case) -> None:
    fact = core_case("sweep_counts")
    assert fact["said"] == [0, 5, 3, 3, 0]
    assert fact["active"] == [3, 0]


def test_sweep_is_not_deceived_by_numbers_that_something_else_has_now(core_case: Case) -> None:
    fact = core_case("sweep_and_reused_numbers")
    assert fact["said"] == [4, 2, 2, 0]


def test_sweep_tells_nameless_unix_connections_apart(core_case: Case) -> None:
    assert core_case("sweep_of_unix_connections")["said"] == [3, 2, 1]


def test_whoever_sweeps_is_woken_by_the_first_open_connection_only(core_case: Case) -> None:
    assert core_case("first_open_wakes")["woken"] == [True, False] * 2


# ---- The shared region


@pytest.mark.parametrize("byte", ["ff", "80", "41", "01", "00"])
def test_rubbish_that_a_worker_writes_into_the_region_crashes_nobody(core_case: Case, byte: str) -> None:
    assert core_case("rubbish_in_the_region", byte)["served"]


def test_there_is_one_region_per_process(core_case: Case) -> None:
    assert core_case("a_second_region")["said"] == "the shared region exists"


def test_slots_are_given_out_until_none_is_left_and_reused(core_case: Case) -> None:
    fact = core_case("slots")
    assert fact["refused"]
    assert fact["described"] == [[1, 4711, 2], [2, 0, 0]]
    assert fact["reused"]


# ---- Timers and processes


def test_a_timer_fires_when_its_time_has_come(core_case: Case) -> None:
    fact = core_case("timers")
    assert fact["fired"] == [True, True, True]
    assert not fact["later"]
    assert not fact["inheritable"]


def test_fork_runs_pythons_hooks_and_keeps_signals_from_the_child_until_it_wants_them(core_case: Case) -> None:
    fact = core_case("forks")
    assert fact["status"] == 7
    assert fact["hooks"] == ["before", "parent"]
    assert not fact["inheritable"]
    assert fact["blocked"] == []


def test_a_fork_without_a_descriptor_for_its_pidfd_leaves_no_child(core_case: Case) -> None:
    fact = core_case("fork_fails")
    assert (fact["error"], fact["children"]) == (MANY_FILES, 0)


@pytest.mark.parametrize(("close", "status"), [("unexpected", 0), ("orderly", 3)])
def test_the_lifeline_ends_a_busy_process_whose_channel_has_closed_unexpectedly(
    core_case: Case, close: str, status: int
) -> None:
    assert core_case("lifeline", close)["status"] == status


@pytest.mark.parametrize("descriptors", ["some", "none"])
def test_the_lifeline_hangs_on_the_parent_when_the_channel_has_closed_in_order(
    core_case: Case, descriptors: str
) -> None:
    fact = core_case("orphan", descriptors)
    assert (fact["lives"], fact["left"]) == (True, "")
