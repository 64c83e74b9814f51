"""Listening on a descriptor that somebody else has opened, and on the addresses of IPv6."""

import contextlib
import errno
import os
import pathlib
import signal
import socket
from typing import Any

import pytest

from harness import Programs, connect, free_port, read_all, wait_until
from puppets import Puppets, Start, refuses, who_answers, who_answers_at, worker_in

RR_AND_NONE = ["rr", "none"]

# ---- A descriptor of the primary's


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_workers_share_a_descriptor_of_the_primarys_which_stays_its_own(start: Start, policy: str) -> None:
    cluster = start(policy=policy)
    fd = cluster.do(0, "open_descriptor", kind="listener")
    name = cluster.do(0, "name_of")
    before = sockets(cluster)
    for _ in range(2):
        for worker in (1, 2):
            assert cluster.do(worker, "listen", how="cluster", fd=fd)["name"] == name
            cluster.do(worker, "serve_in_a_thread")
            heard = cluster.program.wait_for("listening", worker=worker)
            assert (heard["fd"], heard["host"], heard["port"], heard["path"]) == (fd, *name, None)
        assert {who_answers(name[1]) for _ in range(6)} <= {1, 2}
        cluster.do(1, "close")
        assert [who_answers(name[1]) for _ in range(3)] == [2] * 3
        cluster.do(2, "close")
        assert wait_until(lambda: sockets(cluster) == before)
        # The socket of the user's still listens.
        with connect(name[1]) as client:
            for worker in (1, 2):
                cluster.do(worker, "listen", how="cluster", fd=fd)
            accepting = [cluster.begin(worker, "accept") for worker in (1, 2)]
            assert worker_in(read_all(client)) in (1, 2)
            assert worker_in(ask_whoever_is_left(name[1])) in (1, 2)
            for seq in accepting:
                cluster.result(seq)
        for worker in (1, 2):
            cluster.do(worker, "close")
    cluster.do(0, "close_descriptor")
    assert wait_until(lambda: refuses(lambda: connect(name[1]).close()))


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_thread_that_waits_for_connections_takes_none_of_the_next_listener(start: Start, policy: str) -> None:
    cluster = start(workers=1, policy=policy)
    fd = cluster.do(0, "open_descriptor", kind="listener")
    cluster.do(1, "listen", how="cluster", fd=fd)
    assert cluster.do(1, "listen_again_while_accepting", how="cluster", fd=fd) == errno.EBADF


def sockets(cluster: Puppets) -> list[str]:
    """What sockets the primary has open."""
    return [name for name in cluster.do(0, "descriptors") if name.startswith("socket:")]


def ask_whoever_is_left(port: int) -> bytes:
    with connect(port) as client:
        return read_all(client)


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_worker_that_has_inherited_the_descriptor_keeps_it_as_its_own(start: Start, policy: str) -> None:
    cluster = start(workers=0, policy=policy)
    fd = cluster.do(0, "open_descriptor", kind="listener")
    port = cluster.do(0, "name_of")[1]
    cluster.fork(2)
    inode = socket_inode(cluster.pid(1), fd)
    for worker in (1, 2):
        cluster.do(worker, "listen", how="cluster", fd=fd)
        cluster.do(worker, "serve_in_a_thread")
    assert {who_answers(port) for _ in range(6)} <= {1, 2}
    cluster.do(1, "close")
    assert socket_inode(cluster.pid(1), fd) == inode
    assert [who_answers(port) for _ in range(3)] == [2] * 3
    cluster.do(1, "listen", how="cluster", fd=fd)
    cluster.do(2, "close")
    with connect(port) as client:
        cluster.begin(1, "accept")  # or its thread does, which still waits on the same number, and for a request's end
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"worker 1"


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_unix_listener_of_the_primarys_is_shared_by_its_number_too(start: Start, policy: str) -> None:
    cluster = start(policy=policy)
    fd = cluster.do(0, "open_descriptor", kind="unix listener")
    name = cluster.do(0, "name_of")
    for worker in (1, 2):
        said = cluster.do(worker, "listen", how="cluster", fd=fd)
        assert (said["name"], said["family"]) == (name, socket.AF_UNIX)
        heard = cluster.program.wait_for("listening", worker=worker)
        assert (heard["fd"], heard["path"], heard["port"]) == (fd, name, None)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(name)
        cluster.begin(1, "accept")
        cluster.begin(2, "accept")
        assert worker_in(read_all(client)) in (1, 2)


def test_a_number_that_is_another_socket_by_now_is_another_listener(start: Start) -> None:
    cluster = start()
    fd = cluster.do(0, "open_descriptor", kind="listener")
    first = cluster.do(1, "listen", how="cluster", fd=fd)["name"]
    cluster.do(0, "close_descriptor")
    assert cluster.do(0, "open_descriptor", kind="listener") == fd
    second = cluster.do(2, "listen", how="cluster", fd=fd)["name"]
    assert first != second
    for worker, name in ((1, first), (2, second)):
        cluster.do(worker, "serve_in_a_thread")
        assert who_answers(name[1]) == worker


@pytest.mark.parametrize("who", [0, 1])
def test_what_is_no_bound_stream_socket_is_refused(start: Start, who: int) -> None:
    cluster = start(workers=1)
    refused = ["unbound", "unbound unix", "datagram", "pair", "connected"]
    descriptors = [(cluster.do(0, "open_descriptor", kind=kind, name=kind), errno.EINVAL) for kind in refused]
    before = cluster.do(0, "descriptors")
    for fd, number in [*descriptors, (0, errno.ENOTSOCK), (1000, errno.EBADF), (-1, errno.EBADF), (2**40, errno.EBADF)]:
        with pytest.raises(OSError, match=r".") as raised:
            cluster.do(who, "listen", how="cluster", fd=fd)
        assert raised.value.errno == number, fd
    assert cluster.do(0, "descriptors") == before


def test_one_worker_cannot_have_a_descriptor_twice_at_a_time(start: Start) -> None:
    cluster = start(workers=1)
    fd = cluster.do(0, "open_descriptor", kind="listener")
    cluster.do(1, "listen", how="cluster", fd=fd)
    with pytest.raises(OSError, match="in use") as raised:
        cluster.do(1, "listen", name="second", how="cluster", fd=fd)
    assert raised.value.errno == errno.EADDRINUSE


def test_in_the_primary_it_is_an_ordinary_socket_on_a_duplicate(start: Start) -> None:
    cluster = start(workers=0)
    fd = cluster.do(0, "open_descriptor", kind="listener")
    said = cluster.do(0, "listen", how="cluster", fd=fd)
    assert said["fd"] != fd
    assert said["accepts"] == 1
    with connect(said["name"][1]):
        cluster.do(0, "accept", reply=False)
    cluster.do(0, "close")
    cluster.do(0, "listen", how="cluster", fd=fd)


def test_exclusively_it_is_the_workers_own_descriptor(start: Start) -> None:
    cluster = start(workers=1)
    fd = cluster.do(1, "open_descriptor", kind="listener")
    name = cluster.do(1, "listen", how="cluster exclusive", fd=fd)["name"]
    cluster.do(1, "serve_in_a_thread")
    assert who_answers(name[1]) == 1
    assert cluster.program.facts_of("listening") == []


def test_a_disconnecting_workers_descriptor_is_quiet(start: Start) -> None:
    cluster = start()
    fd = cluster.do(0, "open_descriptor", kind="listener")
    port = cluster.do(1, "listen", how="cluster")["name"][1]
    with connect(port) as client:
        cluster.do(1, "accept", keep=True)
        cluster.do(0, "disconnect", worker=1)
        cluster.do(1, "listen", name="late", how="cluster", fd=fd)
        with pytest.raises(TimeoutError):
            cluster.do(1, "accept", name="late", timeout=0.05)
        cluster.do(1, "drop")
        assert read_all(client) == b"worker 1"
    assert cluster.wait_for_exit(1) == (0, None)


def test_listen_takes_an_address_or_a_descriptor(cluster_program: Programs) -> None:
    fact = cluster_program("listen_arguments").wait_for("refused")
    assert set(fact["errors"].values()) == {"TypeError"}
    assert len(fact["errors"]) == 8


# ---- IPv6


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_dual_stack_listener_serves_clients_of_ipv4_too(start: Start, policy: str) -> None:
    cluster = start(policy=policy)
    port = free_port()
    for worker in (1, 2):
        cluster.do(worker, "listen", host="::", port=port, v6only=False)
        cluster.do(worker, "serve_in_a_thread")
    for host in ("127.0.0.1", "::1"):
        assert {who_answers(port, host) for _ in range(6)} <= {1, 2}


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_ipv6_only_is_as_the_worker_has_set_it_before_bind(start: Start, policy: str) -> None:
    cluster = start(workers=4, policy=policy)
    port = free_port()
    for worker in (1, 2):
        cluster.do(worker, "listen", host="::", port=port, v6only=True)
        cluster.do(worker, "serve_in_a_thread")
    with pytest.raises(ConnectionRefusedError):
        who_answers(port)
    for worker in (3, 4):
        cluster.do(worker, "listen", host="0.0.0.0", port=port)
        cluster.do(worker, "serve_in_a_thread")
    assert {who_answers(port, "::1") for _ in range(6)} <= {1, 2}
    assert {who_answers(port) for _ in range(6)} <= {3, 4}


@pytest.mark.parametrize("how", ["socket", "cluster"])
def test_the_scope_of_a_link_local_address_is_kept(start: Start, how: str) -> None:
    host, interface = link_local()
    scope = socket.if_nametoindex(interface)
    cluster = start()
    port = free_port()
    for worker in (1, 2):
        if how == "socket":
            said = cluster.do(worker, "listen", host=host, port=port, scope=scope)
        else:
            said = cluster.do(worker, "listen", host=f"{host}%{interface}", port=port, how=how)
        assert said["name"] == [host, port, 0, scope]
        cluster.do(worker, "serve_in_a_thread")
    assert {who_answers(port, f"{host}%{interface}") for _ in range(4)} <= {1, 2}


def link_local() -> tuple[str, str]:
    """An address of this machine's that needs a scope, and its interface."""
    with contextlib.suppress(FileNotFoundError):
        for line in pathlib.Path("/proc/net/if_inet6").read_text().splitlines():
            digits, _, _, scope, flags, interface = line.split()
            if scope == "20" and not int(flags, 16) & 0x40:  # link-local, and no longer tentative
                return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)), interface
    pytest.skip("no interface has a link-local address")


# ---- Closing while connections come


@pytest.mark.parametrize("kind", ["port", "path", "fd"])
@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_no_connection_is_lost_when_a_worker_closes_its_server_while_they_are_handed_over(
    start: Start, tmp_path: pathlib.Path, kind: str, policy: str
) -> None:
    cluster = start(policy=policy)
    port = free_port()
    path = f"{tmp_path}/s"
    arguments: dict[str, Any] = {"path": path} if kind == "path" else {"port": port}
    if kind == "fd":
        arguments = {"how": "cluster", "fd": cluster.do(0, "open_descriptor", kind="listener")}
        port = cluster.do(0, "name_of")[1]
    for worker in (1, 2):
        cluster.do(worker, "listen", **arguments)
    cluster.do(2, "serve_in_a_thread")
    closing = cluster.begin(1, "open_and_close", times=20, **arguments)
    answers: list[int] = []
    while not any(cluster.program.facts_of(how, seq=closing) for how in ("done", "failed")) or len(answers) < 50:
        answers.append(who_answers_at(path) if kind == "path" else who_answers(port))
    cluster.result(closing)
    assert set(answers) <= {1, 2}
    assert cluster.do(0, "figures")["lost"] == 0


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_process_that_the_primary_forks_on_its_own_keeps_no_descriptor_of_ours(start: Start, policy: str) -> None:
    cluster = start(workers=1, policy=policy)
    fd = cluster.do(0, "open_descriptor", kind="listener")
    port = cluster.do(1, "listen", how="cluster", fd=fd)["name"][1]
    inode = socket_inode(cluster.program.pid, fd)
    sleeper = cluster.do(0, "fork_a_sleeper")
    try:
        held = [name for name in os.listdir(f"/proc/{sleeper}/fd") if socket_inode(sleeper, int(name)) == inode]
        assert held == [str(fd)], "the user's own, as any child has it"
        assert port
    finally:
        os.kill(sleeper, signal.SIGKILL)


def socket_inode(pid: int, fd: int) -> str:
    return os.readlink(f"/proc/{pid}/fd/{fd}")
