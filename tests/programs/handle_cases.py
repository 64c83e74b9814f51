"""Messages with handles. Argument: the name of a case below, and for some who sends: "primary" or "worker".

One case tells one fact, "facts", in the primary. An end of file at the other end of a pair of sockets says that no
process holds a copy of this end any more, wherever it was on its way.
"""

import functools
import hashlib
import os
import signal
import socket
import sys
import tempfile
import time
from asyncio import trsock
from collections.abc import Callable
from typing import Any

from programs.facts import open_descriptors, tell
from pycluster import Worker, cluster, process

PATIENCE_S = 15.0
Send = Callable[..., bool]

# ---- Each kind of socket, from either side


def offer(send: Send) -> Callable[[], dict[str, str]]:
    """Send one handle of each kind; returns what finds out whether the other side has used each."""
    asked: dict[str, socket.socket] = {}

    def connect_to(listener: socket.socket) -> socket.socket:
        client = socket.socket(listener.family, listener.type)
        client.settimeout(PATIENCE_S)
        client.connect(listener.getsockname())
        return client

    with socket.create_server(("127.0.0.1", 0)) as server:
        asked["connection"] = connect_to(server)
        send("connection", server.accept()[0])
    listener = socket.create_server(("127.0.0.1", 0))
    asked["listener"] = connect_to(listener)
    send("listener", listener)
    with tempfile.TemporaryDirectory() as directory:
        for name, kind in (("unix listener", socket.SOCK_STREAM), ("unix datagrams", socket.SOCK_DGRAM)):
            sock = socket.socket(socket.AF_UNIX, kind)
            sock.bind(f"{directory}/{kind}")
            if kind == socket.SOCK_STREAM:
                sock.listen()
            asked[name] = connect_to(sock)
            send(name, sock)
        send("socket's file", os.open(f"{directory}/{socket.SOCK_STREAM}", os.O_PATH))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    asked["datagrams"] = connect_to(datagrams)
    send("datagrams", datagrams)
    answers, pipe = os.pipe()
    send("pipe", open(pipe, "wb"))  # noqa: SIM115

    def find_out() -> dict[str, str]:
        said = {}
        for name, sock in asked.items():
            if name == "unix datagrams":  # its other end has no name to be answered at
                sock.send(b"used")
                continue
            sock.send(b"?")
            said[name] = sock.recv(100).decode()
            sock.close()
        with open(answers, "rb") as file:
            said["pipe"] = file.read().decode()
        return said

    return find_out


def use(name: str, handle: Any) -> str:
    """Answer whoever is at the other end. Returns what kind of handle it is."""
    if name == "pipe":
        os.write(handle, b"used")
        os.close(handle)
        return "int"
    if name == "socket's file":  # without an address, as far as the kernel says
        os.close(handle)
        return "int"
    kind = f"{handle.family.name} {handle.type.name}"
    with handle:
        handle.settimeout(PATIENCE_S)
        if "listener" in name:
            with handle.accept()[0] as connection:
                connection.recv(1)
                connection.send(b"used")
        elif name == "unix datagrams":
            assert handle.recv(100) == b"used"
        elif name == "datagrams":
            _, peer = handle.recvfrom(1)
            handle.sendto(b"used", peer)
        else:
            handle.recv(1)
            handle.send(b"used")
    return kind


def kinds(worker: Worker | None) -> None:
    sender = sys.argv[2]
    if (worker is None) == (sender == "worker"):
        send = process.send if worker is None else worker.send
        with cluster.exclusive():  # a worker's sockets are to be its own here, not shared ones
            find_out = offer(send)
        send("end")
        said = find_out()
        if worker is None:
            send(["said", said])
        else:
            facts["said"] = said


def on_kind(worker: Worker | None, message: Any, handle: Any) -> None:
    if isinstance(message, list):
        facts[message[0]] = message[1]
    elif message != "end":
        used[message] = use(message, handle)
        return
    elif worker is None:
        process.send(["used", used])
    else:
        facts["used"] = used
    if worker is not None and {"said", "used"} <= set(facts):
        finish()


# ---- Large messages with handles


def digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()[:8]


def marked(mark: str) -> int:
    fd = os.memfd_create("marked")
    os.write(fd, mark.encode())
    return fd


def large(worker: Worker | None) -> None:
    """Small and large by turns, each with its own handle, to the worker and back."""
    if worker is not None:
        for number, size in enumerate([1, 12_000_000, 2, 15_000_000, 3]):
            payload = bytes([number]) * size
            sent.append([str(number), digest(payload)])
            worker.send(payload, marked(str(number)))


def on_large(worker: Worker | None, message: bytes, handle: int) -> None:
    if worker is None:
        process.send(message, handle)
        return
    mark = os.pread(handle, 10, 0).decode()
    os.close(handle)
    got.append([mark, digest(message)])
    if len(got) == len(sent):
        facts["same"] = got == sent
        finish()


# ---- The same handle again


def twice(worker: Worker | None) -> None:
    """The same socket three times, kept open twice; each copy works, and the end comes with the last one."""
    if worker is not None:
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE_S)
        without_close = trsock.TransportSocket(theirs)
        try:
            worker.send("none", without_close)
        except TypeError as error:
            facts["refused"] = str(error)
        worker.send("first", without_close, keep_open=True)
        worker.send("second", theirs, keep_open=True)
        facts["kept"] = theirs.fileno() >= 0
        worker.send("third", theirs)
        facts["closed"] = theirs.fileno() == -1
        facts["said"] = read_to_the_end(ours)
        finish()


def on_twice(worker: Worker | None, message: str, handle: socket.socket) -> None:
    copies.append(handle)
    if len(copies) == 3:
        copies[0].sendall(f"{len({copy.fileno() for copy in copies})} descriptors".encode())
        for copy in copies:
            copy.sendall(b".")
            copy.close()


def read_to_the_end(sock: socket.socket) -> str:
    said = b""
    while chunk := sock.recv(1000):
        said += chunk
    return said.decode()


# ---- Handles in flight when the receiver or the sender dies

IN_FLIGHT = 60
PADDING = "x" * 20_000  # so that some wait in the socket, and some in the sender's memory


def killed(worker: Worker | None) -> None:
    """To a worker that is stopped, and then killed; a second one is forked while handles wait."""
    if worker is None or worker.id == 2:
        return
    before = len(open_descriptors())
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE_S)
    os.kill(worker.process.pid, signal.SIGSTOP)
    wait_until_stopped(worker.process.pid)
    written: list[bool] = []
    for _ in range(IN_FLIGHT):
        worker.send(PADDING, theirs, keep_open=True, callback=lambda error: written.append(error is None))
    theirs.close()
    cluster.fork()
    # Not before the other one's script has said all that it says.
    cluster.on("message", lambda other, message, handle: worker.kill(signal.SIGKILL))

    @cluster.on("exit")
    def on_exit(ended: Worker, code: int | None, number: int | None) -> None:
        if ended is worker:
            facts["end"] = ours.recv(1).decode()
            ours.close()
            facts["left"] = len(open_descriptors()) - before  # two of the dead worker were replaced by the other one's
            cluster.disconnect()
        else:
            facts["callbacks"] = len(written)
            facts["some of each"] = set(written) == {True, False}
            facts["written first"] = written == sorted(written, reverse=True)
            tell("facts", **facts)


def suicide(worker: Worker | None) -> None:
    """From a worker that kills itself while handles are on their way."""
    if worker is None:
        ours, theirs = socket.socketpair()
        process.send("ours", ours)
        for _ in range(IN_FLIGHT):
            process.send(PADDING, theirs, keep_open=True)
        os.kill(os.getpid(), signal.SIGKILL)


def on_suicide(worker: Worker, message: str, handle: socket.socket) -> None:
    if message == "ours":
        copies.append(handle)
        before = len(open_descriptors())

        @worker.on("exit")
        def on_exit(code: int | None, number: int | None) -> None:
            with copies.pop() as ours:
                ours.settimeout(PATIENCE_S)
                # Gone are the worker's two: its process's and its channel's.
                tell("facts", end=ours.recv(1).decode(), left=len(open_descriptors()) + 2 - before)
    else:
        handle.close()


def wait_until_stopped(pid: int) -> None:
    while True:
        with open(f"/proc/{pid}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[0] == "T":
                return
        time.sleep(0.001)


# ---- Handles that nobody wants, callbacks, and a peer that does not read


def unwanted(worker: Worker | None) -> None:
    """The primary listens for no messages."""
    if worker is None:
        ours, theirs = socket.socketpair()
        reader, writer = os.pipe()
        ours.settimeout(PATIENCE_S)
        process.send("socket", theirs)
        process.send("pipe", writer)
        tell("facts", end=ours.recv(1).decode(), pipe=os.read(reader, 1).decode())


def raising(worker: Worker | None) -> None:
    """Callbacks of messages with handles; the first raises."""
    if worker is not None:
        called: list[int] = []

        def callback(error: BaseException | None) -> None:
            called.append(len(called))
            if called == [0]:
                raise LookupError("callback")
            if len(called) == 3:
                facts["called"] = called
                finish()

        for number in range(3):
            worker.send(number, marked("x"), callback=callback)


def on_raising(worker: Worker | None, message: int, handle: int) -> None:
    os.close(handle)


def slow_reader(worker: Worker | None) -> None:
    """Worker 1 is stopped while 30 MB wait for it; the primary and worker 2 go on talking."""
    if worker is None:
        return
    workers.append(worker)
    if len(workers) == 1:
        cluster.fork()
        return
    slow = cluster.workers[1]
    os.kill(slow.process.pid, signal.SIGSTOP)
    wait_until_stopped(slow.process.pid)
    sent.extend(slow.send([number, "x" * 100_000]) for number in range(300))
    facts["said true"] = sent.count(True)
    facts["no more after the first False"] = True not in sent[sent.index(False) :]
    cluster.workers[2].send([0, ""])


def on_slow_reader(worker: Worker | None, message: Any, handle: None) -> None:
    if worker is None:
        assert cluster.worker is not None
        if cluster.worker.id == 2:
            process.send(message)
        else:
            got.append(message[0])
            if len(got) == 300:
                process.send(["in order", got == list(range(300))])
    elif worker.id == 2 and message[0] < 100:
        worker.send([message[0] + 1, ""])
    elif worker.id == 2:
        facts["trips meanwhile"] = message[0]
        os.kill(cluster.workers[1].process.pid, signal.SIGCONT)
    else:
        facts[message[0]] = message[1]
        finish()


# ---- Which case it is

facts: dict[str, Any] = {}
used: dict[str, str] = {}
sent: list[Any] = []
got: list[Any] = []
copies: list[socket.socket] = []
workers: list[Worker] = []


def finish() -> None:
    tell("facts", **facts)
    cluster.disconnect()


CASES: dict[str, tuple[Callable[[Worker | None], None], Callable[..., None] | None]] = {
    "kinds": (kinds, on_kind),
    "large": (large, on_large),
    "twice": (twice, on_twice),
    "killed": (killed, lambda worker, message, handle: None),
    "suicide": (suicide, on_suicide),
    "unwanted": (unwanted, None),
    "raising": (raising, on_raising),
    "slow reader": (slow_reader, on_slow_reader),
}

begin, hear = CASES[sys.argv[1]]
if hear is None:
    pass
elif cluster.is_primary:

    @cluster.on("message")
    def on_message(worker: Worker, message: Any, handle: Any) -> None:
        if message == "ready":
            begin(worker)
        elif hear is not None:
            hear(worker, message, handle)

else:
    process.on("message", functools.partial(hear, None))
    process.send("ready")
if cluster.is_primary:
    cluster.fork()
    cluster.run()
else:
    begin(None)
