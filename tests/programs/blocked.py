"""Messages for a worker whose main thread is blocked. Argument: in what."""

import socket
import sys
import threading
import time
from typing import Any

from programs.facts import tell
from pycluster import Worker, cluster, process

if cluster.is_primary:

    @cluster.on("message")
    def on_message(worker: Worker, message: Any, handle: None) -> None:
        if message == "ready":
            worker.send("ping")
        else:
            tell("answer", message=message)
            worker.disconnect()

    cluster.on("exit", lambda worker, code, signal: tell("exit", code=code))
    cluster.fork()
    cluster.run()
else:

    @process.on("message")  # type: ignore[untyped-decorator]
    def on_message_in_worker(message: Any, handle: None) -> None:
        process.send([message, threading.current_thread().name])

    listener = cluster.listen(("127.0.0.1", int(sys.argv[2])))
    ours, theirs = socket.socketpair()
    process.send("ready")
    if sys.argv[1] == "accept":
        listener.accept()
    elif sys.argv[1] == "sleep":
        time.sleep(60)
    elif sys.argv[1] == "recv":
        ours.recv(1)
    elif sys.argv[1] == "spin":
        while True:
            pass
    elif sys.argv[1] == "lock":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
