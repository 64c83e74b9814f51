"""A module for templates to import. PRELOADED in the environment says what it does then."""

import os
import signal
import sys
import threading
import time

from pycluster import cluster

PID = os.getpid()

if fifo := os.environ.get("PRELOADED_FIFO"):
    with open(fifo, "rb") as file:
        file.read()  # until whoever has opened it has closed it

match os.environ.get("PRELOADED"):
    case "raise":
        raise LookupError("of all things")
    case "exit":
        sys.exit("enough")
    case "die":
        os.abort()
    case "thread":
        threading.Thread(target=time.sleep, args=(3600,), name="for ever", daemon=True).start()
    case "stop":  # it, before any fork, as OpenBLAS does with its threads
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        # They are run in the other order.
        os.register_at_fork(before=thread.join)
        os.register_at_fork(before=stop.set)
    case "SIGKILL" | "SIGSTOP" as name:  # it has made a clone, and has told nobody
        forks = iter(["before it is ready", "of a worker"])

        def signal_oneself() -> None:
            if next(forks) == "of a worker":
                os.kill(os.getpid(), signal.Signals[name])

        os.register_at_fork(after_in_parent=signal_oneself)
    case "count":
        HITS = cluster.counter("hits")
    case "hang":
        os.write(1, b"hangs\n")
        time.sleep(3600)
