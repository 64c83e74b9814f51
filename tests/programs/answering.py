"""The answer that the servers of the tests give: a module of its own, which imports nothing heavy."""

import socket


def answer(connection: socket.socket, text: str) -> None:
    """Read a request up to its empty line, answer with a text, and close."""
    with connection, connection.makefile("rb") as lines:
        while lines.readline().strip():
            pass
        connection.sendall(text.encode())
