"""UDP sockets that workers share: all have the socket itself, and the kernel picks who receives."""

import contextlib
import errno
import os
import select
import signal
import socket
from collections.abc import Callable

import pytest

from harness import PATIENCE_S, free_port, is_free, is_stopped, wait_until
from programs.udp_servers import UDP_SERVERS
from puppets import Start, cpu_s, worker_in

RR_AND_NONE = ["rr", "none"]
# One that is lost in a busy machine's buffers is sent again.
RETRY_S = 1.0


def who_answers(port: int, host: str = "127.0.0.1") -> int:
    """The id of the worker that answers a datagram, from the address that it was sent to."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((host, port))  # which hears nobody else
        client.settimeout(RETRY_S)
        for _ in range(int(PATIENCE_S / RETRY_S)):
            client.send(b"who?")
            with contextlib.suppress(TimeoutError):
                return worker_in(client.recv(100))
    raise TimeoutError


# ---- Servers


# The policy is about connections: a server of each kind of library shows that it makes no difference here.
@pytest.mark.parametrize(
    ("kind", "policy"),
    [(kind, "rr") for kind in UDP_SERVERS] + [(kind, "none") for kind in ("udp", "datagram_endpoint", "udp_loop")],
)
def test_two_workers_with_a_common_server_share_its_port(start: Start, kind: str, policy: str) -> None:
    port = free_port()
    cluster = start(policy=policy)
    cluster.serve(kind, port, 1, 2)
    assert {who_answers(port) for _ in range(8)} <= {1, 2}
    cluster.do(0, "disconnect", worker=1)
    assert cluster.wait_for_exit(1) == (0, None)
    assert [who_answers(port) for _ in range(4)] == [2] * 4
    cluster.do(0, "disconnect", worker=2)
    assert cluster.wait_for_exit(2) == (0, None)
    assert wait_until(
        lambda: is_free(port, socket.SOCK_DGRAM)
    )  # a process that ForkingUDPServer has started may live a moment longer


@pytest.mark.parametrize("kind", ["udp", "datagram_endpoint", "udp_loop"])
def test_both_workers_get_datagrams(start: Start, kind: str) -> None:
    port = free_port()
    cluster = start()
    cluster.serve(kind, port, 1, 2)
    seen: set[int] = set()

    def both() -> bool:
        for worker in (1, 2):
            # Whoever is stopped cannot be faster.
            os.kill(cluster.pid(worker), signal.SIGSTOP)
            seen.add(who_answers(port))
            os.kill(cluster.pid(worker), signal.SIGCONT)
        return seen == {1, 2}

    assert wait_until(both)


@pytest.mark.parametrize("kind", ["udp", "datagram_endpoint", "udp_loop"])
def test_when_a_worker_is_killed_the_other_still_serves(start: Start, kind: str) -> None:
    port = free_port()
    cluster = start()
    cluster.serve(kind, port, 1, 2)
    os.kill(cluster.pid(1), signal.SIGKILL)
    cluster.wait_for_exit(1)
    assert [who_answers(port) for _ in range(4)] == [2] * 4
    cluster.fork()
    cluster.serve(kind, port, 3)
    assert {who_answers(port) for _ in range(4)} <= {2, 3}


def test_listening_tells_where(start: Start) -> None:
    cluster = start(workers=1)
    port = cluster.do(1, "bind_udp", port=free_port())["name"][1]
    heard = cluster.program.wait_for("listening", worker=1)
    assert (heard["host"], heard["port"], heard["path"], heard["fd"]) == ("127.0.0.1", port, None, None)
    assert (heard["family"], heard["type"]) == (socket.AF_INET, socket.SOCK_DGRAM)
    assert cluster.do(0, "states")["1"] == "listening"


# ---- The socket


def test_a_shared_socket_says_of_itself_what_a_plain_one_says(start: Start) -> None:
    cluster = start()
    for host in ("127.0.0.1", "0.0.0.0", "::1", "::", "localhost", ""):
        port = free_port()
        for worker in (1, 2):
            shared = cluster.do(worker, "bind_udp", name="shared", host=host, port=port)
            plain = cluster.do(worker, "bind_udp", name="plain", host=host, port=free_port(), how="exclusive")
            assert shared["name"][0] == plain["name"][0]
            assert shared["name"][1] == port
            for field in plain.keys() - {"name", "fd", "text", "blocking"}:
                assert shared[field] == plain[field], (host, field)
            cluster.do(worker, "close", name="plain")


@pytest.mark.parametrize("again", [-1, None])
def test_each_worker_has_its_own_timeout_and_no_descriptor_blocks(start: Start, again: float | None) -> None:
    cluster = start()
    port = free_port()
    for worker in (1, 2):
        cluster.do(worker, "bind_udp", port=port)
    expected = {0: (0, False), 0.5: (0.5, True), again: (None, True)}
    for set_to, (timeout, blocks) in expected.items():
        said = cluster.do(1, "set_timeout", timeout=set_to)
        assert said == {"timeout": [timeout] * 2, "blocking": [blocks, False]}
        assert cluster.do(2, "describe")["timeout"] is None


def test_a_timeout_is_kept_when_the_socket_is_bound(start: Start) -> None:
    cluster = start(workers=1)
    cluster.do(1, "bind_udp", port=free_port())
    cluster.do(1, "set_timeout", timeout=0.01)
    with pytest.raises(TimeoutError):
        cluster.do(1, "receive")
    cluster.do(1, "set_timeout", timeout=0)
    with pytest.raises(BlockingIOError):
        cluster.do(1, "receive")


def test_a_datagram_that_another_worker_has_taken_is_as_if_nothing_had_come(start: Start) -> None:
    """Both are woken by select or wait in recvfrom; one gets it, and the other one goes on waiting."""
    cluster = start()
    port = free_port()
    for worker in (1, 2):
        cluster.do(worker, "bind_udp", port=port)
    receiving = [cluster.begin(worker, "receive") for worker in (1, 2)]
    first = who_answers(port)
    other = receiving[2 - first]
    assert cluster.result(receiving[first - 1]) == "who?"
    assert not wait_until(lambda: cluster.program.facts_of("failed", seq=other), 0.1)
    if not cluster.program.facts_of("done", seq=other):  # else the question was asked twice
        assert who_answers(port) == 3 - first
    assert cluster.result(other) == "who?"


def test_a_duplicate_is_the_same_socket(start: Start) -> None:
    cluster = start()
    port = free_port()
    for worker in (1, 2):
        cluster.do(worker, "bind_udp", port=port)
    cluster.do(2, "close")
    original = cluster.do(1, "set_timeout", timeout=None)
    assert original == {"timeout": [None] * 2, "blocking": [True, False]}
    cluster.do(1, "duplicate")
    assert cluster.do(1, "describe", name="copy")["blocking"] is False
    cluster.do(1, "close")
    cluster.begin(1, "receive", name="copy")
    assert who_answers(port) == 1
    cluster.do(1, "close", name="copy")
    assert wait_until(lambda: is_free(port, socket.SOCK_DGRAM))


@pytest.mark.parametrize("how", ["fromfd", "fileno"])
def test_a_socket_made_of_the_descriptors_number_blocks_nobody(start: Start, how: str) -> None:
    cluster = start()
    port = free_port()
    for worker in (1, 2):
        cluster.do(worker, "bind_udp", port=port)
    cluster.do(2, "set_timeout", timeout=0)
    cluster.do(1, "duplicate", how=how)
    said = cluster.do(1, "set_timeout", name="copy", timeout=-1)
    assert said == {"timeout": [None] * 2, "blocking": [True, False]}
    with pytest.raises(BlockingIOError):
        cluster.do(2, "receive")


# ---- Private ones


def test_port_0_is_private(start: Start) -> None:
    cluster = start()
    sockets = [(worker, name) for worker in (1, 2) for name in ("one", "other")]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(PATIENCE_S)
        for text in ("hello", "hello again"):
            ports = {each: cluster.do(each[0], "bind_udp", name=each[1])["name"][1] for each in sockets}
            assert len({*ports.values()} - {0}) == 4
            for (worker, name), port in ports.items():
                cluster.do(worker, "send_udp", name=name, port=receiver.getsockname()[1], text=text)
                assert receiver.recvfrom(100) == (text.encode(), ("127.0.0.1", port))
            for worker, name in sockets:
                cluster.do(worker, "close", name=name)
    assert cluster.program.facts_of("listening") == []


def test_an_exclusive_socket_is_this_workers_alone(start: Start) -> None:
    cluster = start()
    port = cluster.do(1, "bind_udp", port=free_port(), how="exclusive")["name"][1]
    for how in ("exclusive", "socket"):
        with pytest.raises(OSError, match="in use") as raised:
            cluster.do(2, "bind_udp", port=port, how=how)
        assert raised.value.errno == errno.EADDRINUSE
    cluster.begin(1, "receive")
    assert who_answers(port) == 1


def test_so_reuseport_opts_out(start: Start) -> None:
    cluster = start()
    port = free_port()
    for worker in (1, 2):
        cluster.do(worker, "bind_udp", port=port, reuse_port=True)
    assert cluster.program.facts_of("listening") == []


def test_share_ports_turns_it_off(start: Start) -> None:
    cluster = start(share_ports=False)
    port = cluster.do(1, "bind_udp", port=free_port())["name"][1]
    with pytest.raises(OSError, match="in use"):
        cluster.do(2, "bind_udp", port=port)


def test_a_tcp_listener_of_the_same_port_is_another_one(start: Start) -> None:
    cluster = start()
    port = free_port()
    for worker in (1, 2):
        cluster.do(worker, "listen", name="tcp", port=port)
        cluster.do(worker, "bind_udp", name="udp", port=port)
    cluster.do(1, "close", name="udp")
    cluster.begin(2, "receive", name="udp")
    assert who_answers(port) == 2


# ---- Its end


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_port_is_free_when_the_last_worker_has_closed_it_and_can_be_bound_again(start: Start, policy: str) -> None:
    cluster = start(policy=policy)
    port = free_port()
    for _ in range(2):
        for worker in (1, 2):
            cluster.do(worker, "bind_udp", port=port)
        cluster.do(1, "close")
        receiving = cluster.begin(2, "receive")
        assert who_answers(port) == 2
        cluster.result(receiving)
        assert not is_free(port, socket.SOCK_DGRAM)
        cluster.do(2, "close")
        assert wait_until(lambda: is_free(port, socket.SOCK_DGRAM))


def test_a_worker_cannot_bind_a_port_twice_nor_a_socket_twice(start: Start) -> None:
    cluster = start(workers=1)
    port = cluster.do(1, "bind_udp", port=free_port(), reuse_address=True)["name"][1]
    for reuse_address in (False, True):
        with pytest.raises(OSError, match="in use") as raised:
            cluster.do(1, "bind_udp", name="second", port=port, reuse_address=reuse_address)
        assert raised.value.errno == errno.EADDRINUSE
    cluster.do(1, "bind_udp", name="private", port=port, reuse_address=True, how="exclusive")
    assert cluster.do(1, "bind_again", name="it", port=free_port()) == errno.EINVAL


def test_a_forgotten_socket_closes_like_a_plain_one(start: Start) -> None:
    cluster = start(workers=1)
    port = cluster.do(1, "bind_udp", port=free_port())["name"][1]
    cluster.do(1, "forget")
    assert wait_until(lambda: is_free(port, socket.SOCK_DGRAM))


def test_after_a_crash_the_port_stays_open_and_the_next_worker_gets_what_waits(start: Start) -> None:
    cluster = start(workers=1)
    port = cluster.do(1, "bind_udp", port=free_port())["name"][1]
    cluster.begin(1, "crash")
    cluster.wait_for_exit(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE_S)
        client.connect(("127.0.0.1", port))
        client.send(b"waits")
        cluster.fork()
        cluster.do(2, "bind_udp", port=port)
        assert cluster.do(2, "receive") == "waits"
        assert client.recv(100) == b"worker 2"


def test_a_worker_shuts_a_socket_down_for_itself_alone(start: Start) -> None:
    cluster = start()
    port = free_port()
    for worker in (1, 2):
        cluster.do(worker, "bind_udp", port=port)
    cluster.do(1, "set_timeout", timeout=0)
    for how in (socket.SHUT_WR, socket.SHUT_RDWR):
        with pytest.raises(OSError, match="not connected"):
            cluster.do(1, "shut_down", how=how)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE_S)
            client.connect(("127.0.0.1", port))
            client.send(b"waits")
            assert blocks(lambda: cluster.do(1, "receive", peek=True)) == (how == socket.SHUT_RDWR)
            assert cluster.do(2, "receive") == "waits"
            assert client.recv(100) == b"worker 2"
    cluster.do(2, "close")
    assert wait_until(lambda: is_free(port, socket.SOCK_DGRAM))


def test_a_disconnected_workers_socket_is_quiet_and_can_still_send(start: Start) -> None:
    cluster = start()
    port, other = free_port(), free_port()
    for worker in (1, 2):
        cluster.do(worker, "bind_udp", name="udp", port=port)
    cluster.do(1, "watch_with_epoll", name="udp")
    # An open connection keeps it from its end.
    cluster.do(1, "listen", port=other)
    with socket.create_connection(("127.0.0.1", other), PATIENCE_S):
        cluster.do(1, "accept", keep=True)
        cluster.do(0, "disconnect", worker=1)
        cluster.do(1, "set_timeout", name="udp", timeout=0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE_S)
            client.connect(("127.0.0.1", port))
            client.send(b"waits")
            assert wait_until(lambda: blocks(lambda: cluster.do(1, "receive", name="udp", peek=True)))
            assert cluster.do(2, "receive", name="udp") == "waits"
            assert client.recv(100) == b"worker 2"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard:
            heard.bind(("127.0.0.1", 0))
            heard.settimeout(PATIENCE_S)
            assert cluster.do(1, "wait_to_be_writable", name="udp") == [select.EPOLLOUT]
            cluster.do(1, "send_udp", name="udp", port=heard.getsockname()[1], text="farewell")
            assert heard.recv(100) == b"farewell"
        # And one that is bound only now is quiet from the start.
        late = free_port()
        assert cluster.do(1, "bind_udp", name="late", port=late)["name"] == ["127.0.0.1", late]
        assert is_free(late, socket.SOCK_DGRAM)
        cluster.do(1, "drop")
    assert cluster.wait_for_exit(1) == (0, None)


def blocks(function: Callable[[], object]) -> bool:
    try:
        function()
    except BlockingIOError:
        return True
    return False


@pytest.mark.parametrize("kind", [kind for kind in UDP_SERVERS if kind != "forking_udp"])
def test_a_worker_that_has_disconnected_does_not_spin(start: Start, kind: str) -> None:
    cluster = start()
    port, other = free_port(), free_port()
    cluster.do(1, "listen", port=other)
    with socket.create_connection(("127.0.0.1", other), PATIENCE_S):
        cluster.do(1, "accept", keep=True)
        heard = len(cluster.program.wait_for_all(1, "listening", worker=1))
        for worker in (1, 2):
            cluster.begin(worker, "serve", kind=kind, where=port)
        assert wait_until(lambda: len(cluster.program.facts_of("listening")) == heard + 2)
        cluster.do(0, "disconnect", worker=1)
        # Till it hears of it, it may still answer.
        assert wait_until(lambda: [who_answers(port) for _ in range(5)] == [2] * 5)
        # What nobody takes would keep it busy, if it still watched the socket that the other one has.
        os.kill(cluster.pid(2), signal.SIGSTOP)
        assert wait_until(lambda: is_stopped(cluster.pid(2)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"waits", ("127.0.0.1", port))
            before = cpu_s(cluster.pid(1))
            assert not wait_until(lambda: cpu_s(cluster.pid(1)) - before > 0.05, 0.4)


def test_a_process_that_the_primary_forks_on_its_own_keeps_no_port(start: Start) -> None:
    cluster = start(workers=1)
    port = cluster.do(1, "bind_udp", port=free_port())["name"][1]
    sleeper = cluster.do(0, "fork_a_sleeper")
    try:
        cluster.do(0, "disconnect", worker=1)
        assert cluster.wait_for_exit(1) == (0, None)
        assert is_free(port, socket.SOCK_DGRAM)
    finally:
        os.kill(sleeper, signal.SIGKILL)


def test_the_primary_holds_nothing_for_workers_that_have_gone(start: Start) -> None:
    cluster = start(workers=1)
    port, other = cluster.do(1, "bind_udp", port=free_port())["name"][1], free_port()
    before = cluster.do(0, "descriptors")
    for worker in (2, 3):
        cluster.fork()
        cluster.do(worker, "bind_udp", name="same", port=port)
        cluster.do(worker, "bind_udp", name="other", port=other)
        cluster.do(worker, "bind_udp", name="closed", port=free_port())
        cluster.do(worker, "close", name="closed")
        cluster.begin(worker, "crash" if worker == 2 else "leave")
        cluster.wait_for_exit(worker)
    assert cluster.do(0, "descriptors") == before
