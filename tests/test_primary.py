"""The primary: what it and its workers have open, loops of the user's own, and forks that fail."""

import contextlib
import errno
import re
import signal
from collections.abc import Iterator

import pytest

from harness import Fact, Programs, free_port


def inodes(fact: Fact, kind: str) -> set[str]:
    links = fact["descriptors"].values()
    return {found[1] for link in links if (found := re.fullmatch(rf"{kind}:\[(\d+)\]", link))}


@pytest.fixture(scope="module", params=["rr", "none"])
def policy(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def facts(policy: str) -> Iterator[list[Fact]]:
    """What programs/descriptors.py tells, under each policy."""
    with contextlib.closing(Programs()) as programs:
        yield programs("descriptors", free_port(), policy).finish().facts


def test_a_worker_inherits_the_users_descriptors(facts: list[Fact]) -> None:
    assert [fact["users"] for fact in facts if fact["event"] == "worker"] == ["user's"] * 3


def test_a_worker_inherits_no_descriptor_of_the_library(facts: list[Fact]) -> None:
    starts = [fact for fact in facts if fact["event"] == "at start"]
    assert len(starts) == 3
    kinds = [sorted(re.sub(r"\d+", "", link) for link in fact["descriptors"].values()) for fact in starts]
    assert kinds[0] == kinds[1] == kinds[2], "the third worker has what the first one has, who had nothing to inherit"
    for fact in starts:
        links = " ".join(fact["descriptors"].values())
        assert "pidfd" not in links
        assert "timerfd" not in links
        assert "memfd" not in links
        assert len(inodes(fact, "socket")) == 1, "its own control channel"


def test_no_socket_is_open_in_two_workers(policy: str, facts: list[Fact]) -> None:
    """Under SCHED_NONE they share the listening socket; otherwise each has its own channels, and nobody else's."""
    workers = [fact for fact in facts if fact["event"] == "worker"]
    listening = set(workers[-1]["listening"])
    assert len(listening) == 1
    one, two, three = [inodes(fact, "socket") for fact in workers]
    common = (one & two) | (two & three) | (one & three)
    assert common == (listening if policy == "none" else set())


@pytest.mark.parametrize("policy", ["rr"], indirect=True)
def test_under_round_robin_the_listening_socket_is_the_primarys_alone(facts: list[Fact]) -> None:
    [primary] = [fact for fact in facts if fact["event"] == "primary"]
    listening = set(primary["listening"])
    assert listening <= inodes(primary, "socket")
    for fact in facts:
        if fact["event"] == "worker":
            assert not listening & inodes(fact, "socket")


@pytest.mark.parametrize("output", ["inherited", "silent"])
def test_the_primary_has_nothing_more_open_after_20_workers_than_after_one(
    output: str, cluster_program: Programs
) -> None:
    first, *_, last = cluster_program("cycles", free_port(), 20, output).finish().facts
    assert (first["number"], last["number"]) == (0, 20)
    assert last["opened"] == first["opened"]
    assert last["threads"] == first["threads"]


def test_output_buffered_before_a_fork_is_written_once(cluster_program: Programs) -> None:
    program = cluster_program("buffered", env={"PYTHONUNBUFFERED": ""})
    program.finish()
    lines = program.lines
    assert lines[:2] == ["top primary", "before the fork"]
    assert lines[-1] == "end"
    assert sorted(lines) == sorted(
        ["top primary", "before the fork", "after the forks", "end", *["top worker", "worker's last word"] * 3]
    )


def test_a_loop_of_the_users_own_waits_for_the_clusters_descriptor(cluster_program: Programs) -> None:
    facts = cluster_program("own_loop").finish().facts
    events = [fact["event"] for fact in facts]
    assert [fact["pending"] for fact in facts if fact["event"] == "pending"] == [False, True]
    assert [event for event in events if event not in ("pending", "pipe")] == [
        "fork",
        "online",
        "message",
        "disconnect",
        "exit",
        "over",
        "waited",
    ]
    assert "pipe" in events
    over, waited = facts[-2:]
    assert (over["idle"], over["few"]) == (True, True), "when nothing is pending, the descriptor is not readable"
    assert waited["long_enough"] is True


def test_a_fork_without_a_descriptor_left_is_an_oserror_and_leaves_nothing(cluster_program: Programs) -> None:
    facts = cluster_program("no_room").finish().facts
    refused = [fact for fact in facts if fact["event"] == "refused"]
    assert len(refused) > 2
    assert {fact["errno"] for fact in refused} == {errno.EMFILE}
    assert {fact["leaked"] for fact in refused} == {0}
    assert len([fact for fact in facts if fact["event"] == "forked"]) == 1
    exits = [(fact["worker"], fact["code"]) for fact in facts if fact["event"] == "exit"]
    assert sorted(exits) == [(1, 0), (2, 0), (3, 0)]


def test_a_worker_too_many_is_a_cluster_error_that_names_the_setting(cluster_program: Programs) -> None:
    [full] = [fact for fact in cluster_program("no_room").finish().facts if fact["event"] == "full"]
    assert "max_workers" in full["text"]


def test_the_users_own_children_are_not_disturbed(cluster_program: Programs) -> None:
    [subprocess] = [f for f in cluster_program("waits_for_any").finish().facts if f["event"] == "subprocess"]
    assert subprocess["code"] == 3


def test_a_worker_that_the_user_has_waited_for_still_exits(cluster_program: Programs) -> None:
    """How it ended cannot be known then: 255, as asyncio reports such a child."""
    facts = cluster_program("waits_for_any").finish().facts
    [waited] = [fact for fact in facts if fact["event"] == "waited"]
    assert (waited["ours"], waited["signal"]) == (True, signal.SIGKILL)
    [exit] = [fact for fact in facts if fact["event"] == "exit"]
    assert (exit["code"], exit["signal"]) == (255, None)
    assert facts[-1]["event"] == "over"


def test_a_cluster_can_be_run_again_and_in_another_thread(cluster_program: Programs) -> None:
    facts = cluster_program("again", free_port()).finish().facts
    assert [fact["turn"] for fact in facts if fact["event"] == "over"] == [0, 1, 2]
    assert [(fact["worker"], fact["code"]) for fact in facts if fact["event"] == "exit"] == [(1, 0), (2, 0), (3, 0)]


def test_a_worker_forked_in_another_thread_runs_its_script_in_its_main_thread(cluster_program: Programs) -> None:
    facts = cluster_program("again", free_port()).finish().facts
    last = [fact for fact in facts if fact["event"] == "threads"][-1]
    assert last["main"] is True
    assert len(last["names"]) == 2, "its main thread, and the library's control thread"
