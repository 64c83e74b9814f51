"""A process that a worker starts is no worker, and the cluster does not wait for it. Arguments: methods, ports.

With KILL in the environment the worker is killed, else disconnected, when the process has started.
"""

import multiprocessing
import os
import socket
import subprocess
import sys
import time

from programs.facts import tell, tell_events
from pycluster import ClusterError, Worker, cluster, process


def live(primary: int, ready: int) -> None:
    """The grandchild: tell what it is, say that it has, and outlive the primary."""
    try:
        process.send("from a grandchild")
        sent = "sent"
    except ClusterError as error:
        sent = type(error).__name__
    with socket.create_server(("127.0.0.1", int(sys.argv[4]))) as own:
        port = socket.socket(fileno=os.dup(own.fileno())).getsockname()[1]
    tell("grandchild", connected=process.connected, sent=sent, port=port)
    os.write(ready, b"x")
    for _ in range(1000):
        if not os.path.exists(f"/proc/{primary}"):
            return
        time.sleep(0.01)


def refuses(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


method, kind, port, *rest = sys.argv[1:]
if kind == "grandchild":
    tell("role", is_primary=cluster.is_primary, own=cluster.worker)
    live(int(rest[1]), int(rest[2]))
elif cluster.is_primary:
    tell_events()

    @cluster.on("message")
    def on_message(worker: Worker, child: int, handle: None) -> None:
        if "KILL" in os.environ:
            worker.kill("SIGKILL")
        else:
            worker.disconnect()
        worker.on("exit", lambda code, signal: tell("alive", alive=os.path.exists(f"/proc/{child}")))

    cluster.setup_primary(start_method=method)
    cluster.fork({"PRIMARY": str(os.getpid())})
    cluster.run()
    tell("over", refuses=refuses(int(port)))
else:
    primary = int(os.environ["PRIMARY"])
    listener = cluster.listen(("127.0.0.1", int(port)))
    ready, writer = os.pipe()
    if kind == "subprocess":
        arguments = [__file__, method, "grandchild", port, rest[0], str(primary), str(writer)]
        child: int | None = subprocess.Popen([sys.executable, *arguments], pass_fds=[writer]).pid
    elif kind == "multiprocessing":
        started = multiprocessing.get_context("fork").Process(target=live, args=(primary, writer), daemon=True)
        started.start()
        child = started.pid
    elif (child := os.fork()) == 0:
        live(primary, writer)
        os._exit(0)
    os.read(ready, 1)
    process.send(child)
    time.sleep(60)
