"""Descriptors that go along with messages: a connection, a listener, a datagram socket and pipes, both ways."""

import os
import socket
from typing import Any

from programs.facts import open_descriptors, tell
from pycluster import Worker, cluster, process


def describe(handle: Any) -> dict[str, Any]:
    if isinstance(handle, socket.socket):
        fd = handle.fileno()
        kind = f"{handle.family.name} {handle.type.name}"
    else:
        fd, kind = handle, type(handle).__name__
    return {"kind": kind, "inheritable": os.get_inheritable(fd)}


def to_worker(worker: Worker) -> None:
    ours, theirs = socket.socketpair()
    worker.send("pair", theirs)
    tell("after send", closed=theirs.fileno() == -1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            connection, _ = listener.accept()
            client.sendall(b"hello")
            worker.send("connection", connection)
            answer = client.recv(99)
        tell("answered", answer=answer.decode())
        worker.send("listener", listener, keep_open=True)
        with socket.create_connection(listener.getsockname()) as client:
            tell("answered", answer=client.recv(99).decode())
        tell("after send", closed=listener.fileno() == -1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        worker.send("datagrams", datagrams)
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file:
        worker.send("pipe", writer)
        tell("from pipe", text=file.read().decode())
    file = open("/etc/hostname" if os.path.exists("/etc/hostname") else "/etc/passwd", "rb")  # noqa: SIM115
    worker.send("file", file)
    tell("after send", closed=file.closed)
    ours.close()


if cluster.is_primary:
    descriptors = 0

    @cluster.on("message")
    def on_message(worker: Worker, message: str, handle: Any) -> None:
        global descriptors
        if message == "ready":
            descriptors = len(open_descriptors())
            to_worker(worker)
        elif message == "done":
            tell("left", by="primary", count=len(open_descriptors()) - descriptors)
            worker.disconnect()
        else:
            tell("got", by="primary", message=message, **describe(handle))
            if isinstance(handle, int):
                os.write(handle, b"into the worker's pipe")
                os.close(handle)
            else:
                handle.sendall(b"into the worker's socket")
                handle.close()

    cluster.on("exit", lambda worker, code, signal: tell("exit", code=code))
    cluster.fork()
    cluster.run()
else:

    def on_message_in_worker(message: str, handle: Any) -> None:
        tell("got", by="worker", message=message, **describe(handle))
        if message == "connection":
            handle.sendall(b"the worker has " + handle.recv(99))
        elif message == "listener":
            handle.accept()[0].sendall(b"accepted in the worker")
        elif message == "pipe":
            os.write(handle, b"the worker's words")
        if isinstance(handle, socket.socket):
            handle.close()
        else:
            os.close(handle)
        if message == "file":
            send_back()

    def send_back() -> None:
        reader, writer = os.pipe()
        process.send("pipe", writer)
        with os.fdopen(reader, "rb") as file:
            tell("from pipe", text=file.read().decode())
        ours, theirs = socket.socketpair()
        process.send("pair", theirs)
        with ours:
            tell("from socket", text=ours.recv(99).decode(), closed=theirs.fileno() == -1)
        tell("left", by="worker", count=len(open_descriptors()) - before)
        process.send("done")

    before = len(open_descriptors())
    process.on("message", on_message_in_worker)
    process.send("ready")
