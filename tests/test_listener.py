"""A worker's listening sockets: unmodified servers share a port, and a shared socket looks like a plain one."""

import collections
import contextlib
import errno
import functools
import signal
import socket

import pytest

from harness import PATIENCE_S, Programs, connect, free_port, read_all, request, wait_until
from programs.servers import SERVERS
from puppets import Start, cpu_s, refuses, who_answers, worker_in

RR_AND_NONE = ["rr", "none"]


# ---- Unmodified servers


def test_the_host_may_be_bytes_and_the_port_whatever_is_an_integer(start: Start) -> None:
    """As a plain bind takes them."""
    cluster = start()
    port = free_port()
    for worker in (1, 2):
        assert cluster.do(worker, "listen", how="bytes", port=port)["name"] == ["127.0.0.1", port]
        cluster.do(worker, "serve_in_a_thread")
    assert cluster.shares(lambda: [who_answers(port) for _ in range(4)], 1, 2) == [2, 2]


@pytest.mark.parametrize("kind", SERVERS)
def test_two_workers_with_a_common_server_share_its_port_in_turn(start: Start, kind: str) -> None:
    port = free_port()
    cluster = start()
    cluster.serve(kind, port, 1, 2)
    assert cluster.shares(lambda: [who_answers(port) for _ in range(8)], 1, 2) == [4, 4]
    cluster.do(0, "disconnect", worker=1)
    assert cluster.wait_for_exit(1) == (0, None)
    assert [who_answers(port) for _ in range(4)] == [2] * 4
    cluster.do(0, "disconnect", worker=2)
    assert cluster.wait_for_exit(2) == (0, None)
    with pytest.raises(ConnectionRefusedError):
        who_answers(port)


@pytest.mark.parametrize("kind", ["http", "start_server", "accept_loop", "accept_loop_with_a_timeout", "selector_loop"])
def test_under_sched_none_workers_share_the_listening_socket_itself(start: Start, kind: str) -> None:
    port = free_port()
    cluster = start(policy="none")
    cluster.serve(kind, port, 1, 2)
    assert {who_answers(port) for _ in range(10)} <= {1, 2}
    cluster.do(0, "disconnect", worker=1)
    assert cluster.wait_for_exit(1) == (0, None)
    assert [who_answers(port) for _ in range(4)] == [2] * 4
    stats = cluster.do(0, "stats")
    assert (stats["dispatched"], stats["accepted"]) == (0, 14)
    cluster.do(0, "disconnect", worker=2)
    assert cluster.wait_for_exit(2) == (0, None)
    with pytest.raises(ConnectionRefusedError):
        who_answers(port)


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_worker_that_ignores_its_disconnection_does_not_spin(start: Start, policy: str) -> None:
    cluster = start(workers=5, policy=policy)
    port = {cluster.do(worker, "listen", how="cluster")["name"][1] for worker in range(1, 6)}.pop()
    cluster.do(5, "serve_in_a_thread")
    for worker, how in enumerate(("select", "poll", "epoll", "accept"), 1):
        cluster.begin(worker, "wait_on", how=how)
        cluster.program.wait_for("waiting", worker=worker)
        cluster.do(0, "disconnect", worker=worker)
    for worker in range(1, 5):
        cluster.program.wait_for("asked to exit", worker=worker)
    pids = [cluster.pid(worker) for worker in range(1, 5)]
    before = [cpu_s(pid) for pid in pids]
    # What the other one serves meanwhile must not wake them either.
    assert [who_answers(port) for _ in range(20)] == [5] * 20
    assert not wait_until(lambda: max(cpu_s(pid) - cpu for pid, cpu in zip(pids, before, strict=True)) > 0.1, 0.4)


def test_under_sched_none_a_listener_that_does_not_block_here_does_not_block_because_of_another_worker(
    start: Start,
) -> None:
    cluster = start(policy="none")
    cluster.do(1, "listen", how="cluster")
    with pytest.raises(BlockingIOError):
        cluster.do(1, "accept", timeout=0)
    cluster.do(2, "listen", how="cluster")  # a blocking one, as any is at first
    accepting = cluster.begin(1, "accept", as_it_is=True)
    assert wait_until(lambda: cluster.program.facts_of("failed", seq=accepting)), "it blocks"


def test_under_sched_none_a_listener_that_blocks_here_blocks_whatever_another_worker_does(start: Start) -> None:
    cluster = start(policy="none")
    port = cluster.do(1, "listen", how="cluster")["name"][1]
    cluster.do(2, "listen", how="cluster")
    with pytest.raises(BlockingIOError):
        cluster.do(2, "accept", timeout=0)
    accepting = cluster.begin(1, "accept", timeout=None, as_it_is=True)
    assert not wait_until(lambda: cluster.program.facts_of("failed", seq=accepting), 0.2)
    assert request(port) == b"worker 1"


def test_a_disconnecting_worker_that_closes_its_listener_ends_with_what_it_has_not_accepted(start: Start) -> None:
    cluster = start(workers=1)
    port = free_port()
    cluster.do(1, "listen", port=port)
    with connect(port) as client:
        assert wait_until(lambda: cluster.do(0, "stats")["dispatched"] == 1)
        cluster.do(0, "disconnect", worker=1)
        cluster.do(1, "close")
        assert read_all(client) == b""
        assert cluster.wait_for_exit(1) == (0, None)
    assert cluster.do(0, "stats")["dispatched"] == 0


def test_under_sched_none_an_accept_ends_in_time_though_its_worker_disconnects_meanwhile(start: Start) -> None:
    cluster = start(policy="none")
    port = cluster.do(1, "listen", how="cluster")["name"][1]
    cluster.do(2, "listen", how="cluster")
    with connect(port):
        cluster.do(1, "accept", keep=True)
        accepting = cluster.begin(1, "time_accept", timeout=2.0)
        cluster.program.wait_for("accepting", worker=1)
        with pytest.raises(TimeoutError):
            cluster.do(2, "accept", timeout=1.6)
        cluster.do(0, "disconnect", worker=1)
        # If its time began anew, it would be 1.6 s and 2 s more.
        assert 2.0 <= cluster.result(accepting) < 3.6


# ---- What the methods say


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_shared_listener_says_of_itself_what_a_plain_one_says(start: Start, policy: str) -> None:
    cluster = start(workers=1, policy=policy)
    for host in ("127.0.0.1", "0.0.0.0", "::1", "::", "localhost", ""):
        shared = cluster.do(1, "listen", name="shared", host=host, port=free_port())
        plain = cluster.do(1, "listen", name="plain", host=host, port=free_port(), how="exclusive")
        assert shared["name"][0] == plain["name"][0]
        assert len(shared["name"]) == len(plain["name"])
        # Under SCHED_NONE the workers share one flag, which never blocks; `accept` blocks all the same.
        ignored = {"name", "fd", "text"} | ({"blocking"} if policy == "none" else set())
        for field in plain.keys() - ignored:
            assert shared[field] == plain[field], (host, field)
        assert str(shared["name"][1]) in shared["text"]
        for name in ("shared", "plain"):
            cluster.do(1, "close", name=name)


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_socket_that_is_bound_and_does_not_listen_yet_is_like_a_plain_one_too(start: Start, policy: str) -> None:
    cluster = start(workers=1, policy=policy)
    shared = cluster.do(1, "listen", name="shared", port=free_port(), only_bind=True)
    plain = cluster.do(1, "listen", name="plain", port=free_port(), only_bind=True, how="exclusive")
    for field in plain.keys() - {"name", "fd", "text"}:
        assert shared[field] == plain[field], field
    assert cluster.do(1, "unlistened", name="shared") == cluster.do(1, "unlistened", name="plain")
    with pytest.raises(ConnectionRefusedError):
        connect(shared["name"][1])
    listening = cluster.do(1, "start_listening", name="shared")
    assert listening["accepts"] == 1
    assert listening["fd"] == shared["fd"]
    cluster.begin(1, "accept", name="shared")
    assert request(shared["name"][1]) == b"worker 1"


def test_a_client_may_bind_its_port_before_it_connects(start: Start) -> None:
    cluster = start(workers=1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        for how in ("timeout", "blocking"):
            source = free_port()
            connecting = cluster.begin(1, "connect_from", source=source, port=server.getsockname()[1], how=how)
            connection, address = server.accept()
            with connection:
                connection.settimeout(PATIENCE_S)
                with contextlib.suppress(ConnectionError):
                    connection.sendall(b"hello")
                assert cluster.result(connecting) == "hello"
                assert address[1] == source
                assert connection.recv(1) == b""  # closed there means closed here


def test_a_listener_keeps_its_descriptors_number_until_it_is_closed(start: Start) -> None:
    cluster = start(workers=1)
    assert cluster.do(1, "life_of_a_number", port=free_port()) == {"same": True, "closed": True}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_accept_gives_the_peers_address(start: Start, host: str) -> None:
    cluster = start(workers=1)
    port = cluster.do(1, "listen", host=host, port=free_port())["name"][1]
    accepting = cluster.begin(1, "accept")
    with connect(port, host) as client:
        assert cluster.result(accepting) == list(client.getsockname())
        assert read_all(client) == b"worker 1"


def test_a_worker_that_listens_is_listening_in_its_own_eyes_too(start: Start) -> None:
    cluster = start()
    assert cluster.do(1, "state") == "online"
    cluster.do(1, "listen", port=free_port())
    cluster.do(2, "bind_udp", port=free_port())
    assert [cluster.do(worker, "state") for worker in (1, 2)] == ["listening"] * 2


def test_ipv4_and_ipv6_listeners_on_one_port_are_two(start: Start) -> None:
    cluster = start(workers=2)
    port = free_port()
    cluster.do(1, "listen", host="127.0.0.1", port=port)
    cluster.do(2, "listen", host="::1", port=port)
    for worker in (1, 2):
        cluster.do(worker, "serve_in_a_thread")
    assert [who_answers(port, host) for host in ("127.0.0.1", "::1") * 2] == [1, 2] * 2


@pytest.mark.parametrize("policy", RR_AND_NONE)
@pytest.mark.parametrize("how", ["dup", "fromfd", "fileno"])
def test_a_duplicate_of_a_listener_is_the_same_listener(start: Start, how: str, policy: str) -> None:
    cluster = start(workers=1, policy=policy)
    original = cluster.do(1, "listen", how="cluster")
    copy = cluster.do(1, "duplicate", how=how)
    for told in (original, copy):
        del told["fd"], told["text"]
    if how == "fileno":  # a new socket that knows no timeout and no protocol
        del original["proto"], copy["proto"]
    assert copy == original
    port = copy["name"][1]
    for close in ("it", None, "copy"):
        with connect(port) as client:
            cluster.do(1, "accept", name="copy")
            assert read_all(client) == b"worker 1"
        if close is not None:
            cluster.do(1, "close", name=close)
    assert wait_until(lambda: refuses(lambda: connect(port).close()))


@pytest.mark.parametrize("policy", RR_AND_NONE)
@pytest.mark.parametrize("closes", [True, False])
def test_a_worker_that_waits_on_a_duplicate_of_its_listener_can_disconnect(
    start: Start, policy: str, closes: bool
) -> None:
    cluster = start(workers=1, policy=policy)
    cluster.do(1, "listen", how="cluster")
    cluster.do(1, "duplicate")
    if closes:
        cluster.do(1, "close")
    cluster.begin(1, "wait_on", how="accept", name="copy")
    cluster.program.wait_for("waiting", worker=1)
    cluster.do(0, "disconnect", worker=1)
    cluster.program.wait_for("asked to exit", worker=1)
    before = cpu_s(cluster.pid(1))
    assert not wait_until(lambda: cpu_s(cluster.pid(1)) - before > 0.1, 0.4)


@pytest.mark.parametrize("policy", RR_AND_NONE)
@pytest.mark.parametrize("how", ["close_by_number", "detach_and_close"])
def test_a_listener_that_is_closed_by_its_number_can_be_opened_again(start: Start, how: str, policy: str) -> None:
    port = free_port()
    cluster = start(workers=1, policy=policy)
    for _ in range(3):
        cluster.do(1, "listen", port=port)
        with connect(port) as client:
            cluster.do(1, "accept")
            assert read_all(client) == b"worker 1"
        cluster.do(1, how)


@pytest.mark.parametrize("how", ["close_by_number", "detach_and_close"])
def test_a_connection_with_the_number_of_a_closed_listener_may_finish(start: Start, how: str) -> None:
    port = free_port()
    cluster = start(workers=1)
    cluster.do(1, "listen", name="closed", port=free_port())
    cluster.do(1, "listen", port=port)
    number = cluster.do(1, how, name="closed")
    with connect(port) as client:
        assert cluster.do(1, "accept_number") == number
        cluster.do(0, "disconnect", worker=1)
        for _ in range(2):  # before it gets the second one, it has tried to silence its listeners
            cluster.do(1, "own_name")
        cluster.do(1, "answer_number", number=number)
        assert read_all(client) == b"worker 1"
    assert cluster.wait_for_exit(1) == (0, None)


@pytest.mark.parametrize("policy", RR_AND_NONE)
@pytest.mark.parametrize("spare", [0, 2])
def test_a_worker_without_descriptors_disconnects_once_it_has_some(start: Start, policy: str, spare: int) -> None:
    port = free_port()
    cluster = start(policy=policy)
    cluster.do(1, "listen", port=port)
    cluster.do(1, "watch_with_epoll")
    with connect(port) as client:
        cluster.do(1, "accept", keep=True, reply=False)
        cluster.do(2, "listen", port=port)
        cluster.do(1, "use_up_descriptors", spare=spare)
        cluster.do(0, "disconnect", worker=1)
        for _ in range(2):  # before it gets the second one, it has tried to silence the listener
            cluster.do(1, "own_name")
        with connect(port):  # which is the other one's
            assert wait_until(lambda: cluster.do(1, "wakes_at_once"))
            cluster.do(1, "give_descriptors_back", count=4)
            assert wait_until(lambda: not cluster.do(1, "wakes_at_once")), "its loops spin"
        cluster.do(1, "answer_kept")
        cluster.do(1, "drop")
        assert read_all(client) == b"worker 1"
    assert cluster.wait_for_exit(1) == (0, None)


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_idle_connections_that_use_up_a_workers_descriptors_do_not_hold_it(start: Start, policy: str) -> None:
    port = free_port()
    cluster = start(workers=1, policy=policy)
    cluster.do(1, "listen", port=port)
    cluster.do(1, "drop_when_quiet")
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(connect(port))
            cluster.do(1, "accept", keep=True)
        cluster.do(1, "use_up_descriptors")
        cluster.do(0, "disconnect", worker=1)
        assert cluster.wait_for_exit(1) == (0, None)


def test_a_worker_disconnects_once_the_system_has_files_again(start: Start) -> None:
    cluster = start(workers=1)
    cluster.do(1, "listen", port=free_port())
    cluster.do(1, "refuse_to_list", times=3)
    cluster.do(0, "disconnect", worker=1)
    assert cluster.wait_for_exit(1) == (0, None)


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_worker_without_descriptors_closes_a_listener_and_keeps_its_duplicates(start: Start, policy: str) -> None:
    port = free_port()
    cluster = start(workers=1, policy=policy)
    cluster.do(1, "listen", port=port)
    cluster.do(1, "duplicate", how="fileno")
    cluster.do(1, "use_up_descriptors")
    cluster.do(1, "close")
    cluster.do(1, "give_descriptors_back", count=1)
    with connect(port) as client:
        cluster.do(1, "accept", name="copy")
        assert read_all(client) == b"worker 1"
    cluster.do(1, "use_up_descriptors")
    cluster.do(1, "close", name="copy")
    assert wait_until(lambda: refuses(lambda: connect(port).close()))


@pytest.mark.parametrize(("policy", "how"), [("rr", "accept"), ("none", "accept"), ("none", "accept_natively")])
def test_a_connection_that_the_library_has_lost_sight_of_may_finish(start: Start, policy: str, how: str) -> None:
    cluster = start(workers=1, policy=policy)
    port = cluster.do(1, "listen", how="cluster")["name"][1]
    with connect(port) as client:
        cluster.do(1, how, keep=True, reply=False)
        cluster.do(1, "duplicate_connections")
        cluster.do(0, "disconnect", worker=1)
        assert wait_until(lambda: refuses(lambda: connect(port).close()))
        assert not wait_until(lambda: cluster.do(0, "states") != {"1": "disconnecting"}, 0.1)
        cluster.do(1, "answer_kept")
        assert client.recv(100) == b"worker 1"
        cluster.do(1, "drop")
        assert cluster.wait_for_exit(1) == (0, None)


# ---- shutdown


@pytest.mark.parametrize("policy", RR_AND_NONE)
@pytest.mark.parametrize("name", ["it", "copy"])
def test_a_worker_shuts_a_listener_down_for_itself_alone(start: Start, name: str, policy: str) -> None:
    cluster = start(policy=policy)
    port = free_port()
    for worker in (1, 2):
        cluster.do(worker, "listen", port=port)
    cluster.do(1, "duplicate", how="fileno")
    cluster.do(1, "watch_with_epoll")
    with connect(port) as first, connect(port) as second:  # under SCHED_RR one of them lies in the channel of each
        cluster.do(1, "shut_down", name=name)
        for either in ("it", "copy"):
            with pytest.raises(OSError, match="Invalid argument"):
                cluster.do(1, "accept", name=either)
        for _ in range(2):
            cluster.do(2, "accept")
        assert [read_all(client) for client in (first, second)] == [b"worker 2"] * 2
    with connect(port) as client:
        # As a plain listener, a channel is readable then; the other worker's socket is no matter of this one's.
        assert cluster.do(1, "wakes_at_once") == (policy == "rr")
        cluster.do(2, "accept")
        assert read_all(client) == b"worker 2"
    cluster.do(2, "shut_down")
    assert wait_until(lambda: refuses(lambda: connect(port).close()))


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_who_waits_for_connections_hears_of_the_shutdown(start: Start, policy: str) -> None:
    cluster = start(workers=1, policy=policy)
    cluster.do(1, "listen", port=free_port())
    assert cluster.do(1, "shut_down_while_accepting") == errno.EINVAL


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_listener_that_was_shut_down_can_be_opened_again(start: Start, policy: str) -> None:
    cluster = start(policy=policy)
    port = free_port()
    cluster.do(2, "listen", port=port)
    for number in range(3):
        cluster.do(1, "listen", name=f"{number}", port=port)
        cluster.do(1, "shut_down", name=f"{number}")
    cluster.do(1, "listen", port=port)
    cluster.do(1, "close", name="0")
    cluster.do(2, "close")
    with connect(port) as client:
        cluster.do(1, "accept")
        assert read_all(client) == b"worker 1"
    cluster.do(1, "close")  # though two that were shut down are still open
    assert wait_until(lambda: refuses(lambda: connect(port).close()))


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_shutdown_without_effect_on_a_plain_listener_has_none_on_a_shared_one(start: Start, policy: str) -> None:
    cluster = start(workers=1, policy=policy)
    port = free_port()
    cluster.do(1, "listen", port=port, only_bind=True)
    with pytest.raises(OSError, match="not connected"):
        cluster.do(1, "shut_down")
    cluster.do(1, "start_listening")
    cluster.do(1, "shut_down", how=socket.SHUT_WR)
    with pytest.raises(OSError, match="Invalid argument"):
        cluster.do(1, "shut_down", how=3)
    with connect(port) as client:
        cluster.do(1, "accept")
        assert read_all(client) == b"worker 1"


def test_threads_may_open_close_and_shut_down_listeners_at_once(cluster_program: Programs) -> None:
    """Each shutdown looks for duplicates, which nothing that comes and goes in the other thread is."""
    ended = cluster_program("opened_in_threads", 400).finish()
    assert ended.stderr == ""
    assert [(fact["closed"], fact["shut_down"]) for fact in ended.facts] == [(400, 400)]


def test_a_listener_that_is_a_channel_is_not_sent(start: Start) -> None:
    cluster = start(workers=1)
    cluster.do(1, "listen", port=free_port())
    assert "exclusive=True" in cluster.do(1, "send_listener")
    cluster.do(1, "listen", name="own", how="cluster exclusive")
    assert cluster.do(1, "send_listener", name="own") == ""
    number = cluster.do(1, "detach_and_close")
    assert cluster.do(1, "send_pipe") == number  # another file's by now


# ---- cluster.listen


def test_port_0_is_shared_by_the_order_of_calls(start: Start) -> None:
    cluster = start(workers=3)
    ports: dict[str, set[int]] = collections.defaultdict(set)
    for worker in (1, 2, 3):
        for name in ("first", "second"):
            ports[name].add(cluster.do(worker, "listen", name=name, how="cluster")["name"][1])
    (first,), (second,) = ports["first"], ports["second"]
    assert first != second
    for worker in (1, 2, 3):
        for name in ("first", "second"):
            cluster.do(worker, "serve_in_a_thread", name=name)
    for port in (first, second):
        turns = functools.partial(lambda port: [who_answers(port) for _ in range(6)], port)
        assert cluster.shares(turns, 1, 2, 3) == [2, 2, 2]


def test_a_failed_call_does_not_count_for_port_0(start: Start) -> None:
    cluster = start(workers=2)
    with pytest.raises(OSError, match="assign"):
        cluster.do(1, "listen", how="cluster", host="203.0.113.1")
    ports = [cluster.do(worker, "listen", how="cluster")["name"][1] for worker in (1, 2)]
    assert ports[0] == ports[1]


def test_a_private_call_does_not_count_for_port_0(start: Start) -> None:
    cluster = start()
    private = cluster.do(1, "listen", name="private", how="cluster in exclusive")["name"][1]
    ports = [cluster.do(worker, "listen", how="cluster")["name"][1] for worker in (1, 2)]
    assert ports[0] == ports[1] != private


def test_a_port_and_a_pair_of_host_and_port_are_addresses(start: Start) -> None:
    cluster = start(workers=1)
    port, other = free_port(), free_port()
    assert cluster.do(1, "listen", name="a", how="cluster", host="", port=port)["name"] == ["0.0.0.0", port]
    assert cluster.do(1, "listen", name="b", how="cluster", host="127.0.0.1", port=other)["name"] == [
        "127.0.0.1",
        other,
    ]


@pytest.mark.parametrize("how", ["exclusive", "cluster exclusive"])
def test_an_exclusive_listener_is_this_workers_alone(start: Start, how: str) -> None:
    cluster = start()
    port = cluster.do(1, "listen", how=how, port=free_port())["name"][1]
    for other in (how, "socket"):
        with pytest.raises(OSError, match="in use") as raised:
            cluster.do(2, "listen", how=other, port=port)
        assert raised.value.errno == errno.EADDRINUSE
    cluster.do(1, "serve_in_a_thread")
    assert [who_answers(port) for _ in range(3)] == [1] * 3
    assert cluster.do(0, "stats")["dispatched"] == 0
    assert cluster.program.facts_of("listening") == []


@pytest.mark.parametrize("how", ["socket", "exclusive", "cluster exclusive"])
def test_port_0_is_private_unless_cluster_listen_asks_for_it(start: Start, how: str) -> None:
    cluster = start()
    ports = [cluster.do(worker, "listen", how=how)["name"][1] for worker in (1, 2)]
    assert ports[0] != ports[1]
    for worker in (1, 2):
        cluster.do(worker, "serve_in_a_thread")
    assert [who_answers(port) for port in ports] == [1, 2]


def test_so_reuseport_opts_out(start: Start) -> None:
    port = free_port()
    cluster = start()
    for worker in (1, 2):
        cluster.do(worker, "listen", port=port, reuse_port=True)
        cluster.do(worker, "serve_in_a_thread")
    assert {who_answers(port) for _ in range(4)} <= {1, 2}
    assert cluster.do(0, "stats")["dispatched"] == 0


@pytest.mark.parametrize("how", ["socket", "cluster"])
def test_share_ports_turns_all_of_it_off(start: Start, how: str) -> None:
    cluster = start(share_ports=False)
    port = cluster.do(1, "listen", how=how, port=free_port())["name"][1]
    with pytest.raises(OSError, match="in use"):
        cluster.do(2, "listen", how=how, port=port)
    cluster.do(1, "serve_in_a_thread")
    assert who_answers(port) == 1


@pytest.mark.parametrize("clustered", [True, False])
def test_a_program_that_passes_cluster_listen_to_asyncio_runs_with_and_without_a_cluster(
    cluster_program: Programs, clustered: bool
) -> None:
    program = cluster_program("listen_asyncio", 2 if clustered else 0)
    ports = {fact["port"] for fact in program.wait_for_all(2 if clustered else 1, "serving")}
    assert len(ports) == 1
    port = ports.pop()
    assert {who_answers(port) for _ in range(6)} == ({1, 2} if clustered else {0})
    program.send_signal(signal.SIGTERM)
    ended = program.finish()
    assert ended.returncode == (0 if clustered else -signal.SIGTERM)


@pytest.mark.parametrize("how", ["socket", "cluster"])
def test_nothing_is_replaced_in_the_primary(start: Start, how: str) -> None:
    cluster = start()
    port = cluster.do(0, "listen", how=how, port=free_port())["name"][1]
    with pytest.raises(OSError, match="in use"):
        cluster.do(1, "listen", port=port)
    with socket.create_connection(("127.0.0.1", port)):
        assert cluster.do(0, "accept", reply=False)


def test_a_process_that_a_worker_starts_on_its_own_shares_nothing(start: Start) -> None:
    cluster = start(workers=1)
    port = cluster.do(1, "listen", port=free_port())["name"][1]
    said = cluster.do(1, "listen_in_a_child", port=port, other=free_port())
    assert said == {"same port": errno.EADDRINUSE, "other port": "private"}
    cluster.do(1, "serve_in_a_thread")
    assert who_answers(port) == 1


def test_a_process_that_a_worker_starts_keeps_what_has_the_number_of_a_listener_that_is_closed(start: Start) -> None:
    assert start(workers=1).do(1, "read_in_a_child", port=free_port()) == "from the pipe"


def test_a_keep_alive_connection_stays_with_its_worker(start: Start) -> None:
    port = free_port()
    cluster = start()
    cluster.serve("keep_alive", port, 1, 2)
    with connect(port) as client, client.makefile("rb") as lines:
        seen = set()
        for _ in range(5):
            client.sendall(b"hello\n")
            seen.add(worker_in(lines.readline()))
            who_answers_a_line(port)
        assert len(seen) == 1


def who_answers_a_line(port: int) -> int:
    with connect(port) as client, client.makefile("rb") as lines:
        client.sendall(b"hello\n")
        return worker_in(lines.readline())
