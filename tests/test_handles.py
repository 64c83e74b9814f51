"""The primary's listening handles: errors of bind, backlogs, and when a listener closes and when it does not."""

import contextlib
import errno
import os
import pathlib
import shutil
import signal
import socket
import subprocess
from typing import Any

import msgspec
import pytest

from harness import Programs, connect, free_port, is_stopped, read_all, wait_until
from puppets import Start, puppets, who_answers, worker_in
from pycluster import protocol
from pycluster.errors import ProtocolError
from pycluster.listeners import Listeners

RR_AND_NONE = ["rr", "none"]


def is_refused(port: int) -> bool:
    with contextlib.suppress(ConnectionResetError):  # it was closed with this connection in its backlog
        try:
            connect(port).close()
        except ConnectionRefusedError:
            return True
    return False


def backlog_of(port: int) -> int:
    """The longest that the queue of a listening port may become."""
    line = subprocess.run(["ss", "-ltnH", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    return int(line.split()[2])


# ---- Errors of bind


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_strangers_port_is_refused_and_free_again_when_the_stranger_has_gone(start: Start, policy: str) -> None:
    cluster = start(policy=policy)
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        for worker in (1, 2, 1):
            with pytest.raises(OSError, match="in use") as raised:
                cluster.do(worker, "listen", port=port)
            assert raised.value.errno == errno.EADDRINUSE
    for worker in (1, 2):
        cluster.do(worker, "listen", port=port)
        cluster.do(worker, "serve_in_a_thread")
    assert who_answers(port) in (1, 2)


@pytest.mark.parametrize(("policy", "only_bind"), [("none", False), ("rr", True)])
def test_a_port_that_a_disconnecting_worker_still_holds_is_waited_for(
    start: Start, policy: str, only_bind: bool
) -> None:
    cluster = start(policy=policy)
    cluster.do(0, "set_constant", module="requests", name="REBIND_S", value=10)
    port, pid = free_port(), cluster.pid(1)
    cluster.do(1, "listen", port=port, only_bind=only_bind)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert wait_until(lambda: is_stopped(pid))
        cluster.do(0, "disconnect", worker=1)
        heard = cluster.begin(2, "listen", port=port)
        if not only_bind:  # a socket that is bound and does not listen is in nobody's way, with SO_REUSEADDR
            ended = ("done", "failed")
            assert not wait_until(lambda: any(cluster.program.facts_of(how, seq=heard) for how in ended), 0.2)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert cluster.result(heard)["name"][1] == port
    cluster.do(2, "serve_in_a_thread")
    assert who_answers(port) == 2
    assert cluster.wait_for_exit(1) == (0, None)


def test_who_waits_for_a_port_is_refused_when_the_primary_is_to_forget_it(start: Start) -> None:
    cluster = start(policy="none")
    cluster.do(0, "set_constant", module="requests", name="REBIND_S", value=60)
    port, pid, opened = free_port(), cluster.pid(1), cluster.do(1, "descriptors")
    cluster.do(1, "listen", port=port)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert wait_until(lambda: is_stopped(pid))
        cluster.do(0, "disconnect", worker=1)
        heard = cluster.begin(2, "listen", port=port)
        assert wait_until(lambda: cluster.do(0, "wait_for_a_port") == 1)
        [other] = cluster.fork()
        assert len(cluster.do(other, "descriptors")) == len(opened), "it has the socket that waits"
        cluster.do(0, "refuse_waiting")
        with pytest.raises(OSError, match="in use"):
            cluster.result(heard)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert cluster.wait_for_exit(1) == (0, None)


def test_a_strangers_port_is_refused_while_a_worker_disconnects_too(start: Start) -> None:
    cluster = start()
    pid = cluster.pid(1)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert wait_until(lambda: is_stopped(pid))
        cluster.do(0, "disconnect", worker=1)
        with socket.create_server(("127.0.0.1", 0)) as stranger, pytest.raises(OSError, match="in use"):
            cluster.do(2, "listen", port=stranger.getsockname()[1])
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_one_worker_cannot_have_a_port_twice_at_a_time(start: Start, policy: str) -> None:
    cluster = start(policy=policy)
    port = free_port()
    for worker in (1, 2):
        cluster.do(worker, "listen", name="first", port=port)
        for how in ("socket", "cluster"):
            with pytest.raises(OSError, match="in use") as raised:
                cluster.do(worker, "listen", name="second", port=port, how=how)
            assert raised.value.errno == errno.EADDRINUSE
        cluster.do(worker, "close", name="first")
        cluster.do(worker, "listen", name="second", port=port)
        cluster.do(worker, "close", name="second")


def test_a_bound_socket_cannot_be_bound_again(start: Start) -> None:
    cluster = start(workers=1)
    port = free_port()
    cluster.do(1, "listen", name="shared", port=port)
    cluster.do(1, "listen", name="plain", how="exclusive")
    errors = [cluster.do(1, "bind_again", name=name, port=free_port()) for name in ("shared", "plain")]
    assert errors == [errno.EINVAL] * 2


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_privileged_port_is_refused_without_the_right_to_it(start: Start, policy: str) -> None:
    port = privileged_port()
    cluster = start(workers=0, policy=policy)
    if os.geteuid() == 0:
        cluster.do(0, "drop_rights")
    cluster.fork(2)
    for worker in (1, 2):
        with pytest.raises(PermissionError) as raised:
            cluster.do(worker, "listen", port=port)
        assert raised.value.errno == errno.EACCES


def privileged_port() -> int:
    first = int(pathlib.Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first < 2:
        pytest.skip("every port is open to everybody here (ip_unprivileged_port_start)")
    return first - 1


@pytest.mark.parametrize("host", ["203.0.113.1", "2001:db8::1"])
def test_an_address_that_is_not_this_machines_is_refused_as_the_kernel_does(start: Start, host: str) -> None:
    cluster = start(workers=1)
    numbers = []
    for how in ("socket", "exclusive"):
        with pytest.raises(OSError, match="assign") as raised:
            cluster.do(1, "listen", host=host, port=free_port(), how=how)
        numbers.append(raised.value.errno)
    assert numbers == [errno.EADDRNOTAVAIL] * 2


def test_addresses_that_overlap_are_refused_as_the_kernel_does(start: Start) -> None:
    cluster = start()
    port = cluster.do(1, "listen", host="127.0.0.1", port=free_port())["name"][1]
    with pytest.raises(OSError, match="in use"):
        cluster.do(2, "listen", host="0.0.0.0", port=port)


# ---- Backlog


@pytest.mark.skipif(shutil.which("ss") is None, reason="ss (iproute2) tells the backlog")
@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_the_largest_backlog_that_was_asked_for_is_in_force(start: Start, policy: str) -> None:
    cluster = start(workers=4, policy=policy)
    port = free_port()
    seen = []
    for worker, backlog in enumerate((5, 3, 64, 10), 1):
        cluster.do(worker, "listen", port=port, backlog=backlog)
        seen.append(backlog_of(port))
    assert seen == [5, 5, 64, 64]


@pytest.mark.skipif(shutil.which("ss") is None, reason="ss (iproute2) tells the backlog")
@pytest.mark.parametrize(("how", "backlog", "expected"), [("cluster", None, 511), ("socket", 0, 0), ("socket", -5, 0)])
def test_a_backlog_is_taken_as_listen_takes_it(start: Start, how: str, backlog: int | None, expected: int) -> None:
    cluster = start(workers=1)
    port = cluster.do(1, "listen", how=how, port=free_port(), backlog=backlog)["name"][1]
    assert backlog_of(port) == expected


def test_listening_again_changes_nothing_but_the_backlog(start: Start) -> None:
    cluster = start(workers=1)
    first = cluster.do(1, "listen", port=free_port(), backlog=3)
    again = cluster.do(1, "start_listening", backlog=70)
    assert again == first
    if shutil.which("ss"):
        assert backlog_of(first["name"][1]) == 70
    cluster.do(1, "serve_in_a_thread")
    assert who_answers(first["name"][1]) == 1


# ---- When a listener closes


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_listener_closes_with_the_last_worker_that_closes_it_and_opens_again(start: Start, policy: str) -> None:
    cluster = start(policy=policy)
    port = free_port()
    for _ in range(2):
        for worker in (1, 2):
            cluster.do(worker, "listen", port=port)
        cluster.do(1, "close")
        cluster.do(2, "serve_in_a_thread")
        assert [who_answers(port) for _ in range(3)] == [2] * 3
        cluster.do(2, "close")
        assert wait_until(lambda: is_refused(port))
        socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize("policy", RR_AND_NONE)
@pytest.mark.parametrize("listening", [True, False])
def test_a_forgotten_listener_closes_like_a_plain_one(start: Start, listening: bool, policy: str) -> None:
    cluster = start(workers=1, policy=policy)
    port = cluster.do(1, "listen", port=free_port(), only_bind=not listening)["name"][1]
    cluster.do(1, "forget")
    assert wait_until(lambda: is_refused(port))
    cluster.do(1, "listen", port=port)


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_listener_closes_with_the_last_worker_that_disconnects(start: Start, policy: str) -> None:
    cluster = start(policy=policy)
    port = free_port()
    for worker in (1, 2):
        cluster.do(worker, "listen", port=port)
        cluster.do(worker, "serve_in_a_thread")
    cluster.do(0, "disconnect", worker=1)
    assert cluster.wait_for_exit(1) == (0, None)
    assert not is_refused(port)
    cluster.do(2, "leave")
    assert cluster.wait_for_exit(2) == (0, None)
    assert is_refused(port)
    socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_port_stays_open_after_the_last_worker_has_crashed_and_the_next_one_serves_what_waits(
    start: Start, policy: str
) -> None:
    cluster = start(workers=1, policy=policy)
    port = cluster.do(1, "listen", port=free_port())["name"][1]
    cluster.begin(1, "crash")
    assert cluster.wait_for_exit(1) == (None, "SIGKILL")
    with connect(port) as client:
        cluster.fork()
        cluster.do(2, "listen", port=port)
        cluster.do(2, "accept")
        assert read_all(client) == b"worker 2"
    # Now it is an ordinary one again.
    cluster.do(2, "close")
    assert wait_until(lambda: is_refused(port))


def test_a_crashed_workers_port_is_free_when_the_cluster_ends(
    cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    with puppets(cluster_program, tmp_path, workers=1) as cluster:
        port = cluster.do(1, "listen", port=free_port())["name"][1]
        cluster.begin(1, "crash")
        cluster.wait_for_exit(1)
        assert not is_refused(port)
    assert is_refused(port)


def test_a_port_that_was_asked_for_by_index_stays_the_same_for_a_worker_that_comes_later(start: Start) -> None:
    cluster = start()
    port = cluster.do(1, "listen", how="cluster")["name"][1]
    cluster.begin(1, "crash")
    cluster.wait_for_exit(1)
    assert cluster.do(2, "listen", how="cluster")["name"][1] == port
    cluster.fork()
    assert cluster.do(3, "listen", how="cluster")["name"][1] == port


def test_the_primary_holds_nothing_for_workers_that_have_gone(start: Start) -> None:
    cluster = start(workers=1)
    port, other = cluster.do(1, "listen", port=free_port())["name"][1], free_port()
    before = cluster.do(0, "descriptors")
    for worker in (2, 3, 4):
        cluster.fork()
        cluster.do(worker, "listen", name="same", port=port)
        cluster.do(worker, "listen", name="other", port=other)
        cluster.do(worker, "listen", name="closed", how="cluster")
        cluster.do(worker, "close", name="closed")
        # The first one crashes, so the other port stays open until the second one has listened there, too.
        cluster.begin(worker, "crash" if worker == 2 else "leave")
        cluster.wait_for_exit(worker)
    assert cluster.do(0, "descriptors") == before


# ---- Who has what open


def test_a_program_that_is_started_inherits_nothing(start: Start) -> None:
    cluster = start()
    for worker in (1, 2):
        cluster.do(worker, "listen", how="cluster")
    for who in (0, 1, 2):
        found = cluster.do(who, "run_ls")
        # Its stdin, stdout and stderr, and the directory that it lists.
        assert len(found) == 4, found


def test_a_process_that_the_primary_forks_on_its_own_keeps_no_port_open(start: Start) -> None:
    cluster = start(workers=1)
    port = cluster.do(1, "listen", port=free_port())["name"][1]
    sleeper = cluster.do(0, "fork_a_sleeper")
    try:
        cluster.do(0, "disconnect", worker=1)
        assert cluster.wait_for_exit(1) == (0, None)
        assert is_refused(port)
        socket.create_server(("127.0.0.1", port)).close()
    finally:
        os.kill(sleeper, signal.SIGKILL)


def test_a_late_worker_holds_no_more_than_an_early_one(start: Start) -> None:
    cluster = start(workers=1)
    early = len(cluster.do(1, "descriptors"))
    cluster.fork()
    for worker in (1, 2):
        cluster.do(worker, "listen", name="a", how="cluster")
        cluster.do(worker, "listen", name="b", how="cluster")
    cluster.fork()
    assert len(cluster.do(3, "descriptors")) == early


def test_a_worker_has_up_to_64_listeners_and_room_again_when_it_has_closed_one(start: Start) -> None:
    cluster = start(workers=1)
    for i in range(64):
        cluster.do(1, "listen", name=str(i), how="cluster")
    with pytest.raises(OSError, match="64 listeners") as raised:
        cluster.do(1, "listen", name="too many", how="cluster")
    assert raised.value.errno == errno.EMFILE
    cluster.do(1, "close", name="7")
    port = cluster.do(1, "listen", how="cluster")["name"][1]
    cluster.do(1, "serve_in_a_thread")
    assert who_answers(port) == 1


# ---- Connections that wait


@pytest.mark.parametrize("end", ["crash", "disconnect"])
def test_connections_that_wait_in_a_worker_that_ends_are_served_by_another_one(start: Start, end: str) -> None:
    cluster = start()
    port = free_port()
    for worker in (1, 2):
        cluster.do(worker, "listen", port=port)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(6)]
        assert wait_until(lambda: cluster.do(0, "stats")["pending"] == 6)
        if end == "crash":
            os.kill(cluster.pid(1), signal.SIGKILL)
        else:
            cluster.do(0, "disconnect", worker=1)
        cluster.wait_for_exit(1)
        for _ in clients:
            cluster.do(2, "accept")
        assert [read_all(client) for client in clients] == [b"worker 2"] * 6
    assert cluster.do(0, "figures")["lost"] == 0


def test_connections_that_wait_in_the_last_worker_are_served_by_the_one_that_is_forked_for_it(start: Start) -> None:
    cluster = start(workers=1)
    port = cluster.do(1, "listen", port=free_port())["name"][1]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(5)]
        assert wait_until(lambda: cluster.do(0, "stats")["pending"] == 5)
        os.kill(cluster.pid(1), signal.SIGKILL)
        cluster.wait_for_exit(1)
        cluster.fork()
        cluster.do(2, "listen", port=port)
        for _ in clients:
            cluster.do(2, "accept")
        assert [read_all(client) for client in clients] == [b"worker 2"] * 5


def test_connections_that_wait_in_the_last_worker_are_still_its_own_when_it_disconnects(start: Start) -> None:
    cluster = start(workers=1)
    port = cluster.do(1, "listen", port=free_port())["name"][1]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(5)]
        assert wait_until(lambda: cluster.do(0, "stats")["pending"] == 5)
        cluster.do(0, "disconnect", worker=1)
        assert is_refused(port)
        for _ in clients:
            cluster.do(1, "accept")
        assert [read_all(client) for client in clients] == [b"worker 1"] * 5
    assert cluster.wait_for_exit(1) == (0, None)


def test_connections_that_wait_are_shared_out_when_all_workers_disconnect(start: Start) -> None:
    cluster = start(max_pending=1)
    cluster.do(0, "never_take_back")  # nor give to one that runs what waits for one that sleeps
    port = free_port()
    for worker in (1, 2):
        cluster.do(worker, "listen", port=port)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(6)]
        cluster.do(0, "disconnect_all")
        for worker in (1, 2):
            for _ in range(3):
                cluster.do(worker, "accept")
        answers = [worker_in(read_all(client)) for client in clients]
        assert sorted(answers) == [1] * 3 + [2] * 3
    for worker in (1, 2):
        assert cluster.wait_for_exit(worker) == (0, None)


def test_closing_a_listener_with_connections_that_wait_gives_them_to_the_other_worker(start: Start) -> None:
    cluster = start()
    port = free_port()
    for worker in (1, 2):
        cluster.do(worker, "listen", port=port)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(4)]
        assert wait_until(lambda: cluster.do(0, "stats")["pending"] == 4)
        cluster.do(1, "close")
        for _ in clients:
            cluster.do(2, "accept")
        assert [read_all(client) for client in clients] == [b"worker 2"] * 4


def is_closed(client: socket.socket) -> bool:
    """Whether the other side closes a connection, unread or not."""
    with contextlib.suppress(ConnectionResetError):
        return read_all(client) == b""
    return True


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_closing_the_last_listener_closes_the_connections_that_wait_for_it(start: Start, policy: str) -> None:
    cluster = start(workers=1, policy=policy)
    cluster.do(1, "listen", port=free_port())
    cluster.do(1, "close")  # what the first listener of all opens stays open
    cluster.do(0, "states")  # a dispatch later: the primary has heard of the close
    before = [cluster.do(who, "descriptors") for who in (0, 1)]
    port = cluster.do(1, "listen", port=free_port())["name"][1]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(2)]
        assert policy == "none" or wait_until(lambda: cluster.do(0, "stats")["pending"] == 2)
        cluster.do(1, "close")
        assert all(map(is_closed, clients))
    assert is_refused(port)
    assert wait_until(lambda: [cluster.do(who, "descriptors") for who in (0, 1)] == before)


def test_a_disconnecting_workers_new_listener_is_quiet(start: Start) -> None:
    cluster = start()
    port, other = cluster.do(1, "listen", port=free_port())["name"][1], free_port()
    with connect(port) as client:
        cluster.do(1, "accept", keep=True)
        cluster.do(0, "disconnect", worker=1)
        cluster.do(1, "listen", name="late", port=other)
        assert is_refused(other)
        with pytest.raises(TimeoutError):
            cluster.do(1, "accept", name="late", timeout=0.05)
        cluster.do(1, "close", name="late")
        cluster.do(1, "drop")
        assert read_all(client) == b"worker 1"
    assert cluster.wait_for_exit(1) == (0, None)


# ---- Workers that say nonsense


def bind(address: Any, family: int = socket.AF_INET) -> protocol.Bind:
    return protocol.Bind(seq=10**6, family=int(family), kind=int(socket.SOCK_STREAM), address=address, index=None)


NONSENSE = {
    "what is no frame of ours": b"\xc1",
    "a nest": b"\x82\xa4type\xa6Online\xa1x" + b"\x91" * 20000 + b"\xc0",
    "online twice": protocol.Online(),
    "an unknown key": protocol.Listen(seq=10**6, key=4711, backlog=1),
    "a release of nothing": protocol.Release(key=4711),
    "a bind without a socket": bind(["127.0.0.1", 50999]),
    "drained unasked": protocol.Drained(),
}
NONSENSE_WITH_A_SOCKET = {
    "online with a socket": protocol.Online(),
    "text that is none": protocol.encode(bind(["127.0.0.1", 50999])).replace(b"127", b"\xff\xff\xff"),
    "a host by its name": bind(["localhost", 50999]),
    "another family": bind(["::1", 50999], socket.AF_INET6),
    "no address": bind(None),
    "a number": bind(7),
    "an empty list": bind([]),
    "no port": bind(["127.0.0.1"]),
    "a host that is no text": bind([1, 2]),
    "a port that is no number": bind(["127.0.0.1", "80"]),
    "a port that is none": bind(["127.0.0.1", 65536]),
    "a nested list": bind([["127.0.0.1"], 50999]),
    "a host with a nul": bind(["127.0.0.1\0", 50999]),
    "a map": bind({"host": 1}),
}


NONSENSE_WITH_A_FILE = {"a bind of a file": bind(["127.0.0.1", 50999])}


@pytest.mark.parametrize(
    ("kind", "nonsense"), [("nothing", NONSENSE), ("socket", NONSENSE_WITH_A_SOCKET), ("file", NONSENSE_WITH_A_FILE)]
)
def test_nonsense_from_a_worker_harms_nobody_else(start: Start, kind: str, nonsense: dict[str, Any]) -> None:
    cluster = start(workers=1, expects_traceback=True)
    port = cluster.do(1, "listen", port=free_port())["name"][1]
    cluster.do(1, "serve_in_a_thread")
    before = cluster.do(0, "descriptors")
    facts = cluster.program.facts_of
    for liar, (what, said) in enumerate(nonsense.items(), 2):
        cluster.fork()
        control = said if isinstance(said, bytes) else protocol.encode(said)
        saying = cluster.begin(liar, "say", control=control.hex(), kind=kind)
        # A worker that has said enough may be ended before it can tell that it has.
        assert wait_until(lambda: facts("done", seq=saying) or facts("exit", worker=liar)), what  # noqa: B023
        assert cluster.do(0, "states")["1"] == "listening", what
        assert who_answers(port) == 1, what
        with contextlib.suppress(ProcessLookupError):
            os.kill(cluster.pid(liar), signal.SIGKILL)
        cluster.wait_for_exit(liar)
        assert cluster.do(0, "descriptors") == before, what


def test_a_worker_that_asks_for_something_before_it_is_online_loses_its_channel(cluster_program: Programs) -> None:
    ended = cluster_program("before_online").finish()
    assert ended.returncode == 0
    closed = {fact["what"]: fact["closed"] for fact in ended.facts if fact["event"] == "said"}
    assert closed == {"a listen": True, "a release": True, "a leave": True, "a listen when it is online": False}
    assert ended.facts[-1]["same"] is True


def test_a_worker_that_reads_no_answers_loses_its_channel_before_they_use_up_the_descriptors(
    cluster_program: Programs,
) -> None:
    ended = cluster_program("unread").finish()
    assert ended.returncode == 0
    reads, does_not, has_not_bound = (fact for fact in ended.facts if fact["event"] == "asked")
    assert (reads["closed"], does_not["closed"], has_not_bound["closed"]) == (False, True, True)
    assert reads["opened"] < 10
    assert does_not["opened"] < 200


def test_a_frame_of_control_is_what_a_worker_says_or_a_protocol_error() -> None:
    nest = b"\x82\xa4type\xa6Online\xa1x" + b"\x91" * 20000 + b"\xc0"
    no_text = protocol.encode(bind(["127.0.0.1", 50999])).replace(b"127", b"\xff\xff\xff")
    no_umasks = [protocol.encode(msgspec.structs.replace(bind(b"/x"), umask=umask)) for umask in (-1, 0o1000, "0")]
    for payload in (b"", b"\xc1", nest, no_text, protocol.encode(protocol.Disconnect()), *no_umasks):
        with pytest.raises(ProtocolError):
            protocol.decode_from_worker(payload)


def test_the_primary_resolves_no_name_for_a_worker() -> None:
    """A name server that does not answer would hold it up."""
    listeners = Listeners(lambda seconds, function: None)
    for address in (("localhost", 50999), ("no.such.host.", 50999), ("", 50999), ("x" * 300, 50999)):
        with socket.socket() as sock, pytest.raises(OSError, match="no numeric host"):
            listeners.bind(1, bind(address), sock, "rr", None)
    said = protocol.Bind(seq=1, family=int(socket.AF_NETLINK), kind=int(socket.SOCK_RAW), address=(1, 1))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as sock, pytest.raises(OSError, match="family"):
        listeners.bind(1, said, sock, "rr", None)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_the_primary_binds_nothing_but_a_stream_socket_to_a_path(tmp_path: pathlib.Path, kind: int) -> None:
    path = tmp_path / "socket"
    said = protocol.Bind(seq=1, family=int(socket.AF_UNIX), kind=int(kind), address=bytes(path))
    with socket.socket(socket.AF_UNIX, kind) as sock, pytest.raises(OSError, match="family"):
        Listeners(lambda seconds, function: None).bind(1, said, sock, "rr", None)
    assert not path.exists()


def test_a_backlog_out_of_range_harms_nobody(start: Start) -> None:
    cluster = start(workers=2, expects_traceback=True)
    port = cluster.do(1, "listen", port=free_port())["name"][1]
    cluster.do(1, "serve_in_a_thread")
    cluster.do(2, "listen", port=port, only_bind=True)
    said = protocol.Listen(seq=10**6, key=1, backlog=2**40)
    cluster.do(2, "say", control=protocol.encode(said).hex(), kind="nothing")
    assert cluster.do(0, "states")["1"] == "listening"
    assert who_answers(port) == 1
