"""The servers that people run, as they are: programs/served has them as their users write them.

Each serves a port in two workers, under both policies.
"""

import contextlib
import functools
import importlib.util
import pathlib
import re
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Generator, Iterator
from typing import NamedTuple

import pytest

from harness import PROGRAMS, SAYS_WITHIN_S, Fact, Programs, connect, connect_to, free_port, read_all, wait_until
from load import Load, once
from puppets import Puppets, puppets

GET = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


class Server(NamedTuple):
    """One of programs/served."""

    package: str | None = None
    keeps_alive: bool = True
    tls: bool = True


SERVERS = {
    "http_server": Server(keeps_alive=False),
    "threading_http_server": Server(),
    "socketserver": Server(keeps_alive=False),
    "asyncio": Server(keeps_alive=False),
    "uvicorn_on_asyncio": Server("uvicorn"),
    "uvicorn_on_uvloop": Server("uvloop"),
    "hypercorn": Server("hypercorn"),
    "aiohttp": Server("aiohttp"),
    "tornado": Server("tornado"),
    "waitress": Server("waitress", tls=False),
    "flask": Server("flask", keeps_alive=False),
    "cheroot": Server("cheroot"),
    "gevent": Server("gevent"),
    "trio": Server("trio", keeps_alive=False),
    "twisted": Server("twisted"),
}


class Served:
    """Two workers that serve a port, by their process ids."""

    def __init__(self, kind: str, policy: str, cluster: Puppets, port: int) -> None:
        self.kind = kind
        self.policy = policy
        self.cluster = cluster
        self.port = port
        cluster.do(0, "fork", count=2)
        self.workers = {cluster.pid(worker): worker for worker in (1, 2)}
        for worker in (1, 2):
            cluster.wait_for_listening(worker)

    def ask(self, context: ssl.SSLContext | None = None) -> int:
        """Which worker answers a new connection."""
        return self.workers[Client(self.port, context).ask_once()]

    def disconnect(self, worker: int) -> Fact:
        """Disconnect a worker. Returns how it has ended: in much less than the minute for which idle ones are kept."""
        self.cluster.do(0, "disconnect", worker=worker)
        return self.cluster.program.wait_for("exit", worker=worker)


@contextlib.contextmanager
def serving(kind: str, policy: str, directory: pathlib.Path, *args: object) -> Iterator[Served]:
    """Start a server in two workers; in the end they are killed, if they have not left."""
    package = SERVERS[kind].package
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    port = free_port()
    script = PROGRAMS / "served" / f"with_{kind}.py"
    with (
        contextlib.closing(Programs()) as programs,
        puppets(
            programs,
            directory,
            workers=0,
            env={"PYCLUSTER_SCHED_POLICY": policy},
            exec=str(script),
            args=[str(port), *map(str, args)],
        ) as cluster,
    ):
        yield Served(kind, policy, cluster, port)


class Client:
    """An HTTP client that keeps its connection as long as the server does."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        self._connect = functools.partial(connect, port)
        if context is not None:
            self._connect = lambda: context.wrap_socket(connect(port), server_hostname="localhost")  # type: ignore[assignment]
        self.sock: socket.socket | None = None

    def ask(self) -> int:
        """The process id in the answer.

        Raises:
          OSError, AssertionError: there is none. That a connection which has been used before is closed before the
            answer begins is no failure: the server may have closed it when the request was on its way, and a client
            asks once more then (RFC 9112, 9.3.1). Nor is it when the request was not said within SAYS_WITHIN_S.
        """
        while True:
            may_be_closed = self.sock is not None
            began = time.monotonic()
            if self.sock is None:
                self.sock = self._connect()
            try:
                try:
                    self.sock.sendall(GET)
                finally:
                    may_be_closed = may_be_closed or time.monotonic() - began >= SAYS_WITHIN_S
                answer = self.sock.recv(65536)
            except ConnectionError:
                answer = b""
                if not may_be_closed:
                    raise
            if answer or not may_be_closed:
                return self._read(answer)
            self.close()

    def _read(self, answer: bytes) -> int:
        """The rest of an answer."""
        assert self.sock is not None

        def complete() -> bool:
            head, separator, body = answer.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            return bool(separator and length) and len(body) >= int(length[1])  # type: ignore[index]

        ended = False
        while not complete() and not ended:
            chunk = self.sock.recv(65536)
            answer += chunk
            ended = not chunk
        head, _, body = answer.partition(b"\r\n\r\n")
        assert re.match(rb"HTTP/1\.[01] 200 ", head), answer
        if ended or head.startswith(b"HTTP/1.0") or re.search(rb"(?i)\r\nconnection: *close", head):
            self.close()
        return int(body)

    def ask_once(self) -> int:
        """Ask, and close the connection."""
        try:
            return self.ask()
        finally:
            self.close()

    def is_closed_by_the_server(self) -> bool:
        """Wait until it is."""
        if self.sock is not None:
            with contextlib.suppress(ConnectionError):
                return self.sock.recv(1) == b""
        return True

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None


def load(served: Served) -> Load[int]:
    """Clients of which two connect anew for each request, and two keep their connections. Workers' ids answer."""

    def keep() -> Generator[int, None, None]:
        with contextlib.closing(Client(served.port)) as client:
            while True:
                yield served.workers[client.ask()]

    return Load([once(served.ask), once(served.ask), keep, keep])


@pytest.mark.parametrize("policy", ["rr", "none"])
@pytest.mark.parametrize("kind", SERVERS)
def test_workers_take_turns_keep_their_connections_and_lose_no_request_when_they_disconnect(
    kind: str, policy: str, tmp_path: pathlib.Path
) -> None:
    """In one test, because to start the server costs more than all that is asked of it."""
    with serving(kind, policy, tmp_path) as served:
        expect_turns(served)
        expect_kept_connections(served)
        expect_no_loss(served)


def expect_turns(served: Served) -> None:
    """New connections go to the workers in turn, or to whom the kernel picks."""
    if served.policy == "rr":
        assert served.cluster.shares(lambda: [served.ask() for _ in range(60)], 1, 2) == [30, 30]
    else:
        assert {served.ask() for _ in range(20)} <= {1, 2}


def expect_kept_connections(served: Served) -> None:
    """A connection that is kept stays with its worker."""
    with contextlib.closing(Client(served.port)) as client:
        workers = [client.ask()]
        sock = client.sock
        if not SERVERS[served.kind].keeps_alive:
            assert sock is None, "it closes the connection after each request"
            return
        workers += [client.ask() for _ in range(4)]
        assert len(set(workers)) == 1
        assert client.sock is sock


def expect_no_loss(served: Served) -> None:
    """Workers that disconnect under load lose no request, and end with status 0."""
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(contextlib.closing(Client(served.port))) for _ in range(4)]
        for client in idle:
            client.ask()
        with load(served) as clients:
            assert clients.wait_for_answers_of(*((1, 2) if served.policy == "rr" else ())), clients.failures
            first = served.disconnect(1)
            assert clients.wait_for_answers_of(2), clients.failures
        assert clients.failures == []
        assert (first["code"], first["signal"]) == (0, None)
        assert {served.ask() for _ in range(4)} == {2}
        second = served.disconnect(2)
        assert (second["code"], second["signal"]) == (0, None)
        assert all(client.is_closed_by_the_server() for client in idle)
    with pytest.raises(ConnectionRefusedError):
        served.ask()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    """A certificate for localhost, and its key."""
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "certificate", directory / "key"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost"
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return certificate, key


@pytest.mark.parametrize("kind", [kind for kind, server in SERVERS.items() if server.tls])
def test_tls_is_served_in_turn_and_its_idle_connections_hold_no_worker(
    kind: str, certificate: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    context = ssl.create_default_context(cafile=certificate[0])
    with serving(kind, "rr", tmp_path, *certificate) as served, contextlib.ExitStack() as stack:
        assert served.cluster.shares(lambda: [served.ask(context) for _ in range(8)], 1, 2) == [4, 4]
        for _ in range(2):
            stack.enter_context(contextlib.closing(Client(served.port, context))).ask()
        for worker in (1, 2):
            end = served.disconnect(worker)
            assert (end["code"], end["signal"]) == (0, None)


@pytest.mark.parametrize("policy", ["rr", "none"])
def test_uvicorn_serves_on_a_path(policy: str, cluster_program: Programs, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("uvicorn")
    path = str(tmp_path / "app.sock")
    script = str(PROGRAMS / "served" / "with_uvicorn_on_a_path.py")
    environment = {"PYCLUSTER_SCHED_POLICY": policy}
    with puppets(cluster_program, tmp_path, workers=0, env=environment, exec=script, args=[path]) as cluster:
        cluster.do(0, "fork", count=2)
        for worker in (1, 2):
            cluster.wait_for_listening(worker)
        workers = {cluster.pid(worker): worker for worker in (1, 2)}

        def who_answers() -> int:
            with contextlib.closing(connect_to(path)) as client:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return workers[int(read_all(client).rpartition(b"\n\r\n")[2].split()[-1])]

        if policy == "rr":
            assert cluster.shares(lambda: [who_answers() for _ in range(20)], 1, 2) == [10, 10]
        for worker in (1, 2):
            assert who_answers() in range(worker, 3)
            cluster.do(0, "disconnect", worker=worker)
            assert cluster.wait_for_exit(worker) == (0, None)


def test_a_script_that_goes_on_when_its_server_has_ended_is_not_interrupted(
    cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    pytest.importorskip("uvicorn")
    port, other = free_port(), free_port()
    script = str(PROGRAMS / "served" / "with_a_cleanup.py")
    args = [str(port), str(other)]
    with puppets(cluster_program, tmp_path, workers=0, exec=script, args=args) as cluster:
        cluster.do(0, "fork")
        cluster.program.wait_for("listening", port=other)
        with connect(other):
            cluster.program.wait_for("listening", port=port)
            cluster.do(0, "disconnect", worker=1)
            assert cluster.wait_for_exit(1) == (5, None)
        assert cluster.program.facts_of("cleaned")


def test_http_servers_handler_parses_what_has_come_in_another_way(cluster_program: Programs) -> None:
    parsed = cluster_program("parses_itself").wait_for("parsed")
    assert (parsed["path"], parsed["host"]) == ("/path", "here")


def test_cheroot_ends_though_it_is_starting_its_threads(cluster_program: Programs, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("cheroot")
    port = free_port()
    script = str(PROGRAMS / "served" / "with_cheroot_starting.py")
    with puppets(cluster_program, tmp_path, workers=0, exec=script, args=[str(port)]) as cluster:
        cluster.do(0, "fork")
        cluster.program.wait_for("listening", port=port)
        cluster.do(0, "disconnect", worker=1)
        assert cluster.wait_for_exit(1) == (0, None)


def test_waitress_gives_a_slow_client_all_of_its_answer_when_the_worker_disconnects(
    cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    pytest.importorskip("waitress")
    port, size = free_port(), 40_000_000
    script = str(PROGRAMS / "served" / "with_waitress_slowly.py")
    args = [str(port), str(size)]
    with puppets(cluster_program, tmp_path, workers=0, exec=script, args=args) as cluster:
        cluster.do(0, "fork")
        cluster.program.wait_for("listening", port=port)
        with connect(port) as slow:
            slow.sendall(GET)
            answer = slow.recv(1000)
            cluster.do(0, "disconnect", worker=1)
            # waitress looks at its connections at least once a second; this one is silent meanwhile.
            assert not wait_until(lambda: cluster.program.facts_of("exit"), 1.5)
            answer += read_all(slow)
        assert len(answer.partition(b"\r\n\r\n")[2]) == size
        assert cluster.wait_for_exit(1) == (0, None)


def test_a_websocket_stays_with_its_worker_and_is_closed_when_that_ends(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("websockets")
    with serving("uvicorn_on_uvloop", "rr", tmp_path) as served, contextlib.ExitStack() as stack:
        owners: dict[int, WebSocket] = {}
        while len(owners) < 2:
            sock = stack.enter_context(WebSocket(served.port))
            if owners.setdefault(served.workers[int(sock.ask("who?"))], sock) is not sock:
                sock.close()  # the machine kept the other worker from accepting
        for worker, sock in owners.items():
            assert served.workers[int(sock.ask("who?"))] == worker
        for worker, sock in owners.items():
            served.cluster.do(0, "disconnect", worker=worker)
            assert sock.receive() == (0x8, (1012).to_bytes(2, "big")), "the service restarts"
            sock.close()
            assert served.cluster.wait_for_exit(worker) == (0, None)


class WebSocket:
    """A client of RFC 6455 that says little: short texts, in one frame each."""

    def __init__(self, port: int) -> None:
        self._sock = connect(port)
        self._lines = self._sock.makefile("rb")
        self._sock.sendall(
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert self._lines.readline().startswith(b"HTTP/1.1 101 ")
        while self._lines.readline().strip():
            pass

    def __enter__(self) -> "WebSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, text: str) -> str:
        """Send a text. Returns the text that comes back."""
        payload = text.encode()
        self._sock.sendall(bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload)  # masked with zeros
        kind, answer = self.receive()
        assert kind == 0x1
        return answer.decode()

    def receive(self) -> tuple[int, bytes]:
        """The next frame's kind and payload."""
        first, length = self._lines.read(2)
        return first & 0xF, self._lines.read(length)

    def close(self) -> None:
        self._lines.close()
        self._sock.close()


# ---- Servers that accept natively, or in processes of their own


@contextlib.contextmanager
def native(kind: str, policy: str, programs: Programs, directory: pathlib.Path) -> Iterator[tuple[Puppets, int]]:
    """Start one of them in two workers. Also gives its port."""
    pytest.importorskip(kind)
    port = free_port()
    script = str(PROGRAMS / "served" / f"with_{kind}.py")
    environment = {"PYCLUSTER_SCHED_POLICY": policy}
    refused = (kind, policy) in REFUSED
    with puppets(
        programs, directory, 0, env=environment, expects_traceback=refused, exec=script, args=[str(port)]
    ) as cluster:
        cluster.do(0, "fork", count=2)
        yield cluster, port


REFUSED = [("bjoern", "rr"), ("gunicorn", "rr")]


@pytest.mark.parametrize(
    ("kind", "policy"), [("bjoern", "none"), ("granian", "none"), ("granian", "rr"), ("gunicorn", "none")]
)
def test_a_server_that_accepts_natively_serves_where_the_kernel_picks(
    kind: str, policy: str, cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    with native(kind, policy, cluster_program, tmp_path) as (cluster, port):
        answers: set[int] = set()

        def both_have_answered() -> bool:
            with contextlib.suppress(ConnectionRefusedError):
                answers.add(Client(port).ask_once())
            return len(answers) == 2

        assert wait_until(both_have_answered)
        for worker in (1, 2):
            cluster.do(0, "disconnect", worker=worker)
            assert cluster.wait_for_exit(worker) == (0, None)
        with pytest.raises(ConnectionRefusedError):
            Client(port).ask_once()


@pytest.mark.parametrize(("kind", "policy"), REFUSED)
def test_a_server_that_cannot_be_handed_connections_is_refused_with_the_remedy(
    kind: str, policy: str, cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    with native(kind, policy, cluster_program, tmp_path) as (cluster, _):
        for worker in (1, 2):
            assert cluster.wait_for_exit(worker) == (1, None)
        assert wait_until(lambda: cluster.program.stderr.count("SCHED_NONE") == 2)


# ---- gevent


def test_a_thread_that_began_before_gevent_came_says_nothing_at_its_end(cluster_program: Programs) -> None:
    pytest.importorskip("gevent")
    ended = cluster_program("patched_later").finish()
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.facts) == 1


def test_a_whole_program_may_run_under_gevent(cluster_program: Programs) -> None:
    pytest.importorskip("gevent")
    port = free_port()
    program = cluster_program("gevent_everywhere", port)
    workers = {fact["pid"] for fact in program.wait_for_all(2, "serving")}
    program.wait_for_all(4, "heard", message="answer")
    with contextlib.closing(Client(port)) as client:
        client.ask()
        answers = [Client(port).ask_once() for _ in range(4)]
        assert set(answers) == workers
        program.send_signal(signal.SIGTERM)
        ended = program.finish()
    assert ended.returncode == 0
    assert [(fact["code"], fact["asked"]) for fact in ended.facts if fact["event"] == "exit"] == [(0, True)] * 2
    assert program.facts_of("over")
    assert all("start_method='fork'" in fact["text"] for fact in program.wait_for_all(2, "refused"))
