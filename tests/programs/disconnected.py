"""A worker that is disconnected while it does something. Arguments: what it does, who disconnects it, how often."""

import atexit
import sys
import threading
import time

from programs.facts import tell, tell_events
from pycluster import Worker, cluster, process


def do(what: str) -> None:
    if what == "sleep":
        time.sleep(60)
    elif what == "spin":
        while True:
            pass
    elif what == "wait":
        threading.Event().wait()
    elif what == "catch":
        try:
            time.sleep(60)
        except SystemExit as exit:
            tell("caught", code=exit.code)
            raise
    elif what == "clean up":
        try:
            time.sleep(60)
        finally:
            time.sleep(0.2)
            tell("cleaned up")
    elif what == "refuse":
        while True:
            try:
                time.sleep(60)
            except SystemExit:
                tell("refused")
                time.sleep(0.2)
                sys.exit(9)
    elif what == "live on":
        while True:
            try:
                while True:
                    pass
            except SystemExit:
                tell("lives on")
    elif what == "end":
        pass


def state_of(worker: Worker) -> dict[str, object]:
    """What a worker says of itself."""
    return {
        "state": worker.state,
        "asked": worker.exited_after_disconnect,
        "connected": [worker.is_connected(), process.connected],
        "dead": worker.is_dead(),
    }


what, who = sys.argv[1:3]
times = int(sys.argv[3])
if cluster.is_primary:
    tell_events()

    @cluster.on("message")
    def on_message(worker: Worker, message: object, handle: None) -> None:
        for _ in range(times):
            tell("asked", same=worker.disconnect() is worker, state=worker.state)

    cluster.fork()
    cluster.run()
else:
    worker = cluster.worker
    assert worker is not None
    atexit.register(tell, "atexit")

    @worker.on("disconnect")
    def on_disconnect() -> None:
        assert worker is not None
        tell("gone", thread=threading.current_thread().name, **state_of(worker))

    tell("waits", **state_of(worker))
    if who == "primary":
        process.send("disconnect me")
    else:
        for _ in range(times):
            worker.disconnect()
    do(what)
