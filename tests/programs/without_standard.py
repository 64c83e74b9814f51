"""A cluster whose primary is started without some of descriptors 0, 1 and 2. Arguments: start method, which are closed.

Facts go where stdout was, by a number out of the way. The workers tell theirs by messages.
"""

import fcntl
import json
import os
import socket
import sys
from typing import Any

from pycluster import Worker, cluster, process

FACTS = 100

if "PYCLUSTER_TEST_STARTED" not in os.environ:
    os.dup2(1, FACTS)
    for name in sys.argv[2]:
        os.close(int(name))
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYCLUSTER_TEST_STARTED": "yes"})


def standard() -> list[str]:
    """What 0, 1 and 2 are, and whether programs that are started here get them."""
    return [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3) if not fcntl.fcntl(fd, fcntl.F_GETFD)]


if cluster.is_primary:
    found: dict[str, Any] = {}

    @cluster.on("message")
    def on_message(worker: Worker, message: Any, handle: None) -> None:
        found["worker"] = message
        worker.disconnect()

    cluster.counter("opened before anything else is").add()
    cluster.setup_primary(start_method=sys.argv[1])
    worker = cluster.fork()
    found["primary"] = standard()
    cluster.run()
    found["exit"] = worker.process.exitcode
    os.write(FACTS, json.dumps({"event": "facts", **found}).encode() + b"\n")
else:
    server = cluster.listen(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    server.accept()[0].close()
    process.send({"standard": standard(), "served": client.recv(1) == b""})
    server.accept()
