"""A cluster that serves a port, driven by requests. Arguments: kind of server, number of workers, port, settings.

The path of a request names steps that the worker takes in turn before it answers with its id:
  leave   it disconnects itself
  please  it asks the primary to disconnect it, by a message
  slow    it tells "busy", and waits for one line more from the client
"""

import asyncio
import json
import os
import socket
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from programs.facts import tell, tell_events
from pycluster import Worker, cluster, process


def take(step: str) -> None:
    assert cluster.worker is not None
    if step == "leave":
        assert cluster.worker.disconnect() is cluster.worker
    elif step == "please":
        process.send("disconnect")


def answer() -> bytes:
    assert cluster.worker is not None
    tell("answered")
    return f"worker {cluster.worker.id}".encode()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        for step in self.path.split("/"):
            take(step)
            if step == "slow":
                tell("busy")
                self.rfile.readline()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer())

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve_http(port: int) -> None:
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


def serve_accept(port: int) -> None:
    """One connection after the other, blocked in a plain accept() between them."""
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as lines:
            path = lines.readline().split()[1].decode()
            while lines.readline().strip():
                pass
            for step in path.split("/"):
                take(step)
                if step == "slow":
                    tell("busy")
                    lines.readline()
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + answer())


async def answer_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    path = (await reader.readline()).split()[1].decode()
    while (await reader.readline()).strip():
        pass
    for step in path.split("/"):
        take(step)
        if step == "slow":
            tell("busy")
            await reader.readline()
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + answer())
    writer.close()


async def serve_streams(port: int) -> None:
    server = await asyncio.start_server(answer_stream, "127.0.0.1", port)
    await server.serve_forever()


def serve_asyncio(port: int) -> None:
    asyncio.run(serve_streams(port))


kind, workers, port, *settings = sys.argv[1:]
if cluster.is_primary:
    tell_events()

    @cluster.on("message")
    def on_message(worker: Worker, message: object, handle: None) -> None:
        if message == "disconnect":
            worker.disconnect()
            tell("disconnecting", worker=worker.id, state=worker.state, asked=worker.exited_after_disconnect)

    for name in settings:
        cluster.setup_primary(**json.loads(name))
    for _ in range(int(workers)):
        cluster.fork()
    tell("ready", primary=os.getpid())
    cluster.run()
    tell("over", workers=list(cluster.workers))
else:
    {"http": serve_http, "accept": serve_accept, "asyncio": serve_asyncio}[kind](int(port))
