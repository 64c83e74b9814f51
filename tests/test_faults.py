"""The promises under injected faults, in short; tests/soak has the long forms."""

import errno
import os
import pathlib

import pytest

from harness import Programs, free_port
from load import connections
from puppets import Start, who_answers
from soak import graceful, templates
from soak.crashes import storm
from soak.overload import exhausted


def test_a_worker_that_is_killed_at_any_moment_loses_only_what_it_has_accepted() -> None:
    result = storm(kills=20, workers=3)
    assert result.lost == 0, result
    assert result.answered > 50


def test_what_waits_for_the_only_worker_when_it_is_killed_is_served_by_the_next_one() -> None:
    result = storm(kills=6, workers=1)
    assert result.lost == 0, result
    assert result.answered > 20


def test_frames_that_no_worker_sends_harm_neither_the_primary_nor_the_others(cluster_program: Programs) -> None:
    program = cluster_program("hostile", 2000, free_port(), 1, 60)
    fact = program.wait_for("attacked", timeout=60)
    assert fact["sent"] >= 2000
    assert fact["leaked"] == []
    assert fact["answer"] == "worker 1"
    assert program.finish().returncode == 0


def test_the_others_are_served_while_a_worker_writes_all_over_the_shared_memory(
    start: Start, tmp_path: pathlib.Path
) -> None:
    port = free_port()
    cluster = start(workers=2)
    cluster.serve("accept_loop", port, 1)
    with connections(port, 2) as load:
        assert load.wait_for_answers_of(1), load.failures
        cluster.do(0, "read", name="a counter")  # the table of names may be full of rubbish later
        served = tmp_path / "served"
        spoiling = cluster.begin(2, "spoil", seconds=1, until=str(served))
        cluster.program.wait_for("spoiling", worker=2)
        for _ in range(5):
            cluster.do(0, "stats")
            cluster.do(0, "read", name="a counter")
        assert load.wait_for(20), load.failures
        served.touch()
        assert cluster.result(spoiling) >= 12
        assert [who_answers(port) for _ in range(20)] == [1] * 20
    assert load.failures == []
    cluster.fork()
    cluster.serve("accept_loop", port, 3)
    assert {who_answers(port) for _ in range(10)} == {1, 3}


def test_the_end_of_a_worker_is_told_though_its_child_goes_on_writing_messages(cluster_program: Programs) -> None:
    program = cluster_program("outlived")
    assert program.wait_for("exit")["code"] == 7
    assert program.finish().returncode == 0


@pytest.mark.parametrize(
    "how",
    [
        "a message that nobody hears",
        "a message that is none",
        "a request that takes none",
        "a request that is none",
        "a bind that is refused",
        "a message that announces none",
    ],
)
def test_the_primary_does_not_wait_for_a_connection_that_it_closes(cluster_program: Programs, how: str) -> None:
    assert cluster_program("lingering", how).finish().returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_worker_with_another_user_can_do_nothing_to_the_primary(start: Start) -> None:
    cluster = start(workers=1)
    came_to = cluster.do(1, "attack_primary")
    assert came_to.pop("signal by a socket") == []  # asking for it is allowed; the signal is not sent
    assert {name for name, error in came_to.items() if error not in ([errno.EPERM], [errno.EACCES])} == set()
    assert len(came_to) == 8
    assert cluster.do(0, "states") == {"1": "online"}


def test_service_resumes_when_primary_and_workers_have_descriptors_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCLUSTER_SCHED_POLICY", "rr")
    row = exhausted("both", 50, spare=10, limit_primary=True, idle_s=0.5)
    assert row.kept, row.figure


def test_no_request_fails_when_the_cluster_is_terminated_under_load() -> None:
    answered, failures = graceful.terminated(times=2, threads=4)
    assert failures == []
    assert answered > 100


def test_no_request_fails_when_all_workers_are_disconnected_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCLUSTER_SCHED_POLICY", "rr")
    answered, failures = graceful.all_at_once(times=1, threads=4)
    assert failures == []
    assert answered > 50


def test_a_worker_in_which_a_handler_hangs_is_killed_when_its_time_is_over_while_others_serve() -> None:
    row = graceful.outlasting(0.5, {"a handler": graceful.HANGS["a handler that an event loop waits for"]})
    assert row.kept, row.figure


def test_no_request_fails_while_the_template_is_killed_and_replaced() -> None:
    row = templates.killed(times=2)
    assert row.kept, row.figure
