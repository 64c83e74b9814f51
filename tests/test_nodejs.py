"""What Node.js's own tests show of its cluster and no other test here shows of ours; see docs/nodejs-parity.md."""

import errno
import signal
import socket

import pytest

from harness import PATIENCE_S, Ended, Fact, Programs, connect, free_port, read_all

POLICIES = pytest.mark.parametrize("policy", ["rr", "none"])


def run(
    programs: Programs,
    case: str,
    *arguments: object,
    policy: str = "rr",
    returncode: int = 0,
    timeout: float = PATIENCE_S,
) -> Ended:
    """Run one case of programs/nodejs.py to its end."""
    ended = programs("nodejs", case, *arguments, env={"PYCLUSTER_SCHED_POLICY": policy}).finish(timeout)
    assert ended.returncode == returncode
    return ended


def all_of(ended: Ended, event: str) -> list[Fact]:
    return [fact for fact in ended.facts if fact["event"] == event]


def only(ended: Ended, event: str) -> Fact:
    [fact] = all_of(ended, event)
    return fact


def ends(ended: Ended) -> list[tuple[int | None, str | None, bool]]:
    return [(fact["code"], fact["signal"], fact["asked"]) for fact in all_of(ended, "exit")]


GRACEFUL = (0, None, True)


# ---- Ends


def test_a_worker_may_be_destroyed_in_its_disconnect_event(cluster_program: Programs) -> None:
    ended = run(cluster_program, "destroy_after_disconnect")
    assert only(ended, "gone")["connected"] is False
    assert ends(ended) in ([GRACEFUL], [(None, "SIGTERM", True)]), "it may end before the signal comes"


def test_a_worker_may_destroy_itself_in_its_own_disconnect_event(cluster_program: Programs) -> None:
    ended = run(cluster_program, "destroy_in_disconnect")
    assert ends(ended) == [(None, "SIGTERM", True)]
    assert len(all_of(ended, "disconnect")) == 1


@POLICIES
def test_process_disconnect_in_a_worker_is_the_workers_disconnect(policy: str, cluster_program: Programs) -> None:
    ended = run(cluster_program, "process_disconnect", policy=policy)
    assert ends(ended) == [GRACEFUL]


def test_disconnecting_all_in_the_disconnect_event_of_the_last_one_calls_back(cluster_program: Programs) -> None:
    ended = run(cluster_program, "disconnect_in_disconnect")
    assert len(all_of(ended, "callback")) == 1
    assert ends(ended) == [GRACEFUL]


def test_workers_that_are_disconnected_from_both_sides_at_once_disconnect_once(cluster_program: Programs) -> None:
    ended = run(cluster_program, "from_both_sides")
    assert sorted(fact["worker"] for fact in all_of(ended, "disconnect")) == [1, 2, 3, 4]
    assert ends(ended) == [GRACEFUL] * 4


@pytest.mark.parametrize("kind", ["tcp", "udp"])
@POLICIES
def test_a_worker_that_listens_to_nothing_disconnects_beside_one_that_listens(
    policy: str, kind: str, cluster_program: Programs
) -> None:
    ended = run(cluster_program, "two_who_listen_or_not", kind, free_port(), policy=policy)
    assert [fact["worker"] for fact in all_of(ended, "disconnect")] == [1, 2]
    assert ends(ended) == [GRACEFUL] * 2


@POLICIES
def test_a_client_that_has_just_connected_does_not_keep_workers_that_disconnect(
    policy: str, cluster_program: Programs
) -> None:
    assert ends(run(cluster_program, "connected_and_disconnected", policy=policy)) == [GRACEFUL] * 2


@POLICIES
def test_a_worker_may_be_disconnected_while_another_one_starts(policy: str, cluster_program: Programs) -> None:
    ended = run(cluster_program, "disconnected_while_another_starts", policy=policy)
    assert sorted(fact["worker"] for fact in all_of(ended, "disconnect")) == [1, 2]
    assert ends(ended) == [GRACEFUL] * 2


def test_a_worker_that_disconnects_itself_waits_for_the_primarys_answer(cluster_program: Programs) -> None:
    program = cluster_program("nodejs", "disconnects_without_the_primary")
    program.wait_for("asked")
    assert not program.facts_of("gone")
    program.send_signal(signal.SIGCONT)
    ended = program.finish()
    assert len(all_of(ended, "gone")) == 1
    assert ends(ended) == [GRACEFUL]


@POLICIES
def test_workers_that_are_disconnected_before_they_listen_end(policy: str, cluster_program: Programs) -> None:
    ended = run(cluster_program, "disconnected_at_once", policy=policy)
    assert len(all_of(ended, "disconnect")) == 4
    assert ends(ended) == [GRACEFUL] * 4


def test_sigkill_ends_a_stopped_worker_at_once(cluster_program: Programs) -> None:
    assert ends(run(cluster_program, "stopped", "SIGKILL")) == [(None, "SIGKILL", True)]


def test_a_stopped_worker_obeys_when_it_goes_on(cluster_program: Programs) -> None:
    for how, end in (("SIGTERM", (None, "SIGTERM", True)), ("disconnect", GRACEFUL)):
        ended = run(cluster_program, "stopped", how)
        assert only(ended, "asked")["dead"] is False
        assert ends(ended) == [end]


@pytest.mark.parametrize(
    ("where", "asked"),
    [
        ("message", False),
        ("message once", False),
        ("error", False),
        ("callback", False),
        ("disconnect", True),
        ("disconnect, when the script has ended", True),
        ("asyncio", True),
    ],
)
def test_sys_exit_in_a_handler_ends_a_worker_with_that_status(
    where: str, asked: bool, cluster_program: Programs
) -> None:
    assert ends(run(cluster_program, "sys_exit", where, 42)) == [(42, None, asked)]


def test_sys_exit_in_a_callback_ends_a_process_that_a_worker_has_forked(cluster_program: Programs) -> None:
    assert only(run(cluster_program, "sys_exit_in_a_child", 7), "child")["code"] == 7


def test_sys_exit_in_a_handler_ends_the_primary_with_that_status(cluster_program: Programs) -> None:
    ended = run(cluster_program, "sys_exit_in_the_primary", 7, returncode=7)  # fails if the worker is left
    assert len(all_of(ended, "listening")) == 1
    assert not all_of(ended, "end"), "run() has not returned"


def test_a_worker_that_is_in_a_destructor_when_it_is_to_end_ends(cluster_program: Programs) -> None:
    """Python drops what is raised there, and in the callbacks of weak references, which imports are full of."""
    ended = run(cluster_program, "in_a_destructor")
    assert len(all_of(ended, "woken")) == 1
    assert ends(ended) == [GRACEFUL]
    assert ended.stderr == ""


def test_a_worker_whose_server_has_closed_ends_with_its_script(cluster_program: Programs) -> None:
    ended = run(cluster_program, "closes_its_server")
    assert len(all_of(ended, "listening")) == 1
    assert ends(ended) == [(0, None, False)]


# ---- Listening


def test_a_cluster_may_start_again_in_the_callback_of_disconnect(cluster_program: Programs) -> None:
    ended = run(cluster_program, "start_again")
    assert [(fact["ports"], fact["said"]) for fact in all_of(ended, "served")] == [(2, ["echo", "echo"])] * 2
    assert ends(ended) == [GRACEFUL] * 6


@pytest.mark.parametrize("where", ["script", "callback"])
@POLICIES
def test_a_port_of_the_primarys_own_is_refused_and_the_worker_can_still_disconnect(
    policy: str, where: str, cluster_program: Programs
) -> None:
    ended = run(cluster_program, "own_port", where, policy=policy)
    assert only(ended, "refused")["errno"] == errno.EADDRINUSE
    assert ends(ended) == [GRACEFUL]


@POLICIES
def test_a_worker_may_close_a_shared_server_and_listen_to_port_0_again(policy: str, cluster_program: Programs) -> None:
    ended = run(cluster_program, "restart", policy=policy)
    ports = [(fact["worker"], fact["port"]) for fact in all_of(ended, "listening")]
    assert [worker for worker, _ in ports] == [1, 2, 2]
    assert all(isinstance(port, int) and port for _, port in ports)
    assert ports[0][1] == ports[1][1] != ports[2][1], "its second call is another port's first"
    assert ends(ended) == [GRACEFUL] * 2


def test_a_socket_that_listens_without_a_bind_is_private(cluster_program: Programs) -> None:
    ended = run(cluster_program, "no_bind")
    assert only(ended, "private")["same"] is True
    assert not all_of(ended, "listening")
    assert ends(ended) == [(0, None, False)]


@POLICIES
def test_an_ipv6_listener_that_is_not_ipv6_only_answers_ipv4_too(policy: str, cluster_program: Programs) -> None:
    port = free_port()
    ended = run(cluster_program, "both_families", port, policy=policy)
    addresses = [(fact["host"], fact["port"], fact["family"]) for fact in all_of(ended, "address")]
    assert addresses == [("::", port, socket.AF_INET6)] * 3
    assert [fact["said"] for fact in all_of(ended, "said")] == ["hello"] * 2
    assert ends(ended) == [GRACEFUL] * 3


def test_a_worker_may_have_a_udp_port_once_in_each_family(cluster_program: Programs) -> None:
    ended = run(cluster_program, "udp_families", free_port())
    heard = only(ended, "heard")
    assert (heard["four"], heard["six"]) == ("to four", "to six")
    assert len(all_of(ended, "listening")) == 2
    assert ends(ended) == [GRACEFUL]


# ---- Settings


def test_a_worker_gets_the_arguments_that_the_primary_has_when_it_forks(cluster_program: Programs) -> None:
    assert only(run(cluster_program, "arguments"), "arguments")["arguments"] == ["OMG,OMG"]


def test_each_call_of_setup_primary_emits_its_settings(cluster_program: Programs) -> None:
    told = all_of(run(cluster_program, "setups"), "set up")
    settings = [[fact["args"], fact["silent"]] for fact in told]
    assert settings == [[["one"], False], [["two"], False], [["three"], False], [["three"], False], [["three"], True]]
    assert [fact["in_force"] for fact in told] == [settings[-1]] * 5


# ---- Messages


@pytest.mark.parametrize("serialization", ["msgpack", "json"])
def test_a_message_that_looks_like_one_of_the_librarys_is_the_users(
    serialization: str, cluster_program: Programs
) -> None:
    ended = run(cluster_program, "lookalikes", serialization)
    assert only(ended, "back")["same"] is True
    assert ends(ended) == [GRACEFUL]


def test_a_message_is_heard_on_the_worker_on_its_process_and_on_the_cluster(cluster_program: Programs) -> None:
    heard = [(fact["by"], fact["message"]) for fact in all_of(run(cluster_program, "both_emitters"), "heard")]
    assert [pair for pair in heard if "own" not in pair[0]] == [
        (by, "hello") for by in ("process", "worker", "cluster")
    ]
    assert [pair for pair in heard if "own" in pair[0]] == [(by, "hello") for by in ("own process", "own worker")]


def test_a_large_message_takes_a_socket_along_both_ways(cluster_program: Programs) -> None:
    back = only(run(cluster_program, "large_with_handle"), "back")
    assert (back["same"], back["heard"]) == (True, "x")


def test_sockets_that_are_sent_back_and_forth_all_arrive(cluster_program: Programs) -> None:
    ended = run(cluster_program, "handles_back_and_forth", 100)
    assert [(fact["number"], fact["heard"]) for fact in all_of(ended, "back")] == [(n, "x") for n in range(100)]


def test_a_socket_that_is_kept_open_can_be_sent_twice_and_one_that_is_not_cannot(cluster_program: Programs) -> None:
    ended = run(cluster_program, "same_handle_twice")
    assert [fact["message"] for fact in all_of(ended, "got")] == ["first", "second"]
    assert only(ended, "refused")["errno"] == errno.EBADF


def test_a_workers_http_server_answers_a_connection_that_the_primary_has_accepted(cluster_program: Programs) -> None:
    port = free_port()
    program = cluster_program("nodejs", "socket_for_a_server", port)
    program.wait_for("accepts")
    with connect(port) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert read_all(client).endswith(b"\r\n\r\nhello")
    assert ends(program.finish()) == [GRACEFUL]


# ---- Others in the same process


def test_two_libraries_may_use_the_cluster_in_one_process(cluster_program: Programs) -> None:
    ended = run(cluster_program, "two_libraries")
    heard = sorted((fact["library"], fact["message"]) for fact in all_of(ended, "heard"))
    assert heard == [("one", "from one")] * 2 + [("two", "from two")] * 2
    assert sorted((fact["library"], fact["counted"]) for fact in all_of(ended, "over")) == [("one", 2), ("two", 2)]
    assert ends(ended) == [GRACEFUL] * 4


def test_workers_start_whatever_locks_the_primarys_threads_hold(cluster_program: Programs) -> None:
    ended = run(cluster_program, "threads", 12, timeout=50)
    assert len(all_of(ended, "works")) == 12
    assert ends(ended) == [(0, None, False)] * 12


def test_a_fork_leaves_pipes_to_the_primary_whatever_its_threads_do_with_them(cluster_program: Programs) -> None:
    ended = run(cluster_program, "piped", 4)
    assert only(ended, "child")["code"] == 0
    assert [fact["heard"] for fact in all_of(ended, "works")] == ["once"] * 4
    assert ends(ended) == [(0, None, False)] * 4
    assert ended.stderr == ""
