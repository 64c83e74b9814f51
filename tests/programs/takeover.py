"""What a new image of the primary takes over. Arguments: path of a Unix socket, UDP port.

Each worker sends large messages, one after the other, and so does the primary: one is always half written. Connections
and datagrams are answered with the worker's id.
"""

import selectors
import socket
import sys

from programs.facts import tell
from pycluster import Worker, cluster, process

SIZE = 300_000  # more than a socket's buffer has room for

images = cluster.counter("images")


def on_message(worker: Worker, message: dict[str, object], handle: None) -> None:
    tell("message", worker=worker.id, number=message["number"], whole=message["text"] == "x" * SIZE, image=images.value)
    worker.send({"text": "y" * SIZE})


def lead() -> None:
    images.add()
    cluster.setup_primary(graceful_timeout=5)
    cluster.on("message", on_message)
    cluster.on("exit", lambda worker, code, signal: tell("exit", worker=worker.id))
    cluster.fork()
    tell("image", number=images.value, workers=list(cluster.workers))
    cluster.run()


def work() -> None:
    assert cluster.worker is not None
    name = b"worker %d" % cluster.worker.id
    heard = []
    process.on("message", lambda message, handle: heard.append(message["text"] == "y" * SIZE))
    listener = cluster.listen(sys.argv[1])
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", int(sys.argv[2])))
    tell("serving", worker=cluster.worker.id)
    number = 0
    waiting: list[int] = []  # a message each, to be written
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(datagrams, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select(0.001):
                if key.fileobj is datagrams:
                    _, peer = datagrams.recvfrom(1000)
                    datagrams.sendto(name, peer)
                else:
                    connection, _ = listener.accept()
                    with connection:
                        connection.sendall(name)
            if len(waiting) < 3 and cluster.worker.is_connected():
                waiting.append(number)
                process.send({"number": number, "text": "x" * SIZE}, callback=lambda error: waiting.pop(0))
                number += 1
            assert all(heard)


if cluster.is_primary:
    lead()
else:
    work()
