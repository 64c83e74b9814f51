"""uvloop in workers: its servers share ports as asyncio's do."""

import contextlib
import pathlib
import signal
import socket
import ssl
import subprocess

import pytest

from harness import PATIENCE_S, Program, Programs, connect, free_port, is_free, read_all, request, wait_until
from load import connections
from programs.servers import UVLOOP_SERVERS
from puppets import Start, who_answers

pytest.importorskip("uvloop", reason="uvloop is not installed")

RR_AND_NONE = ["rr", "none"]


@pytest.mark.parametrize("kind", UVLOOP_SERVERS)
def test_two_workers_with_a_server_on_uvloop_share_its_port_in_turn(start: Start, kind: str) -> None:
    port = free_port()
    cluster = start()
    cluster.serve(kind, port, 1, 2)
    assert cluster.shares(lambda: [who_answers(port) for _ in range(8)], 1, 2) == [4, 4]
    assert cluster.do(0, "stats")["dispatched"] >= 8, "libuv has accepted them itself"
    for worker in (1, 2):
        cluster.do(0, "disconnect", worker=worker)
        assert cluster.wait_for_exit(worker) == (0, None)
    with pytest.raises(ConnectionRefusedError):
        who_answers(port)


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_no_request_fails_while_workers_on_uvloop_are_replaced(start: Start, policy: str) -> None:
    port = free_port()
    cluster = start(policy=policy)
    cluster.serve("uvloop_start_server", port, 1, 2)
    with connections(port, 4) as load:
        for old, new in ((1, 3), (2, 4)):
            cluster.fork()
            cluster.serve("uvloop_start_server", port, new)
            assert load.wait_for_answers_of(new), load.failures
            cluster.do(0, "disconnect", worker=old)
            assert cluster.wait_for_exit(old) == (0, None)
    assert load.failures == []


def test_an_open_connection_on_uvloop_may_finish_before_its_worker_ends(start: Start) -> None:
    port = free_port()
    cluster = start(workers=1)
    cluster.serve("uvloop_keep_alive", port, 1)
    with connect(port) as client, client.makefile("rb") as lines:
        client.sendall(b"one\n")
        assert lines.readline() == b"worker 1\n"
        cluster.do(0, "disconnect", worker=1)
        with pytest.raises(ConnectionRefusedError):
            connect(port)
        client.sendall(b"two\n")
        assert lines.readline() == b"worker 1\n"
    assert cluster.wait_for_exit(1) == (0, None)


# ---- One worker


def stop(program: Program) -> None:
    program.wait_for("online")  # the primary runs, and answers signals
    program.send_signal(signal.SIGTERM)
    ended = program.finish()
    assert [(fact["code"], fact["signal"]) for fact in ended.facts if fact["event"] == "exit"] == [(0, None)]


def test_private_ports_stay_libuvs(cluster_program: Programs) -> None:
    program = cluster_program("uvloop_cases", "private", free_port())
    serving = program.wait_for("serving")
    assert serving["kinds"] == ["uvloop.loop"] * 3
    for port in serving["ports"]:
        assert request(port, b"x\n")
    assert program.facts_of("listening") == []
    stop(program)


def test_tls_on_uvloop(cluster_program: Programs, tmp_path: pathlib.Path) -> None:
    certificate, key = tmp_path / "certificate", tmp_path / "key"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost"
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    program = cluster_program("uvloop_cases", "tls", certificate, key)
    port = program.wait_for("serving")["port"]
    with connect(port) as plain:  # no TLS: its handshake fails, and nobody else's
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        read_all(plain)
    context = ssl.create_default_context(cafile=certificate)
    with context.wrap_socket(connect(port), server_hostname="localhost") as client:
        client.sendall(b"x\n")
        assert int(client.recv(100)) == client.getsockname()[1]
    stop(program)


def test_a_server_on_uvloop_starts_when_told_to_and_opens_again_after_it_was_closed(cluster_program: Programs) -> None:
    program = cluster_program("uvloop_cases", "later")
    before = program.wait_for("not serving")
    assert (before["serves"], before["same"]) == (False, True)
    assert program.wait_for("serving")["serves"] is True
    again = program.wait_for("again")
    assert request(again["port"], b"x\n")
    stop(program)


def test_a_datagram_endpoint_on_uvloop_opens_again_after_it_was_closed(cluster_program: Programs) -> None:
    port = free_port()
    program = cluster_program("uvloop_cases", "datagrams", port)
    program.wait_for("closed")
    assert wait_until(lambda: is_free(port, socket.SOCK_DGRAM)), "the primary holds it"
    stop(program)


def test_a_loop_without_descriptors_rests_and_loses_no_connection(cluster_program: Programs) -> None:
    program = cluster_program("uvloop_cases", "no_descriptors")
    port = program.wait_for("serving")["port"]
    assert request(port, b"x\n", timeout=PATIENCE_S)
    stop(program)


def test_a_protocol_that_cannot_be_made_or_used_costs_its_own_connection_only(cluster_program: Programs) -> None:
    program = cluster_program("uvloop_cases", "failing")
    port = program.wait_for("serving")["port"]
    for _ in range(3):
        with connect(port) as client, contextlib.suppress(ConnectionResetError):
            assert read_all(client) == b""
    with connect(port) as client:
        client.sendall(b"x\n")
        assert read_all(client)
    assert program.wait_for("made")["failures"] == ["LookupError('no protocol')", "ValueError('no connection')"]
    stop(program)
