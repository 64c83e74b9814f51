"""A primary that gets signals in quick succession while it waits for events. Argument: "run" or "serve"."""

import asyncio
import os
import random
import signal
import sys
import threading
import time

from programs.facts import tell
from pycluster import Worker, cluster, process

COUNT = 1500
ENOUGH_S = 20.0  # of a slow machine, which comes to fewer
PATIENCE_S = 10.0
handled = threading.Event()
answered = threading.Event()


def send_signals(worker: Worker) -> None:
    """Each soon after an event, and with none to follow: some come just before the primary falls asleep."""
    sent = lost = 0
    ends = time.monotonic() + ENOUGH_S
    while sent < COUNT and time.monotonic() < ends:
        handled.clear()
        answered.clear()
        worker.send("x")
        answered.wait(PATIENCE_S)
        time.sleep(random.uniform(0, 200e-6))
        os.kill(os.getpid(), signal.SIGUSR1)
        sent += 1
        if not handled.wait(PATIENCE_S):
            lost += 1
            break
    tell("signalled", sent=sent, lost=lost)
    os.kill(os.getpid(), signal.SIGTERM)


if cluster.is_primary:
    signal.signal(signal.SIGUSR1, lambda number, frame: handled.set())
    worker = cluster.fork()
    worker.on("message", lambda message, handle: answered.set())
    worker.once("online", lambda: threading.Thread(target=send_signals, args=(worker,), daemon=True).start())
    if sys.argv[1] == "run":
        cluster.run()
    else:
        asyncio.run(cluster.serve())
    tell("over", wakeup_fd=signal.set_wakeup_fd(-1))
else:
    process.on("message", lambda message, handle: process.send(message))
    time.sleep(3600)
