"""A worker that the primary kills when it waits; what is known of it in between.

Arguments: the way, and "spin" for a worker that computes for ever instead of sleeping.
"""

import os
import signal
import sys
import time

from programs.facts import tell, tell_events
from pycluster import Worker, cluster, process


def state_of(worker: Worker) -> dict[str, object]:
    return {
        "asked": worker.exited_after_disconnect,
        "state": worker.state,
        "connected": worker.is_connected(),
        "process_connected": worker.process.connected,
        "dead": worker.is_dead(),
        "exitcode": worker.process.exitcode,
        "signal": worker.process.signal,
    }


def kill(worker: Worker, way: str) -> None:
    if way == "kill":
        worker.kill()
    elif way == "destroy":
        worker.destroy()
    elif way == "by name":
        worker.kill("SIGINT" if os.environ.get("INTERRUPT") else "SIGUSR1")
    elif way == "by number":
        worker.kill(signal.SIGKILL)
    elif way == "process":
        worker.process.kill()
    elif way == "process by name":
        worker.process.kill("SIGKILL")
    elif way == "outside":
        os.kill(worker.process.pid, signal.SIGKILL)
    elif way == "twice":
        worker.kill()
        worker.kill()
    elif way == "wrong":
        for name in ("SIGNOTHING", 12345):
            try:
                worker.kill(name)
            except ValueError as error:
                tell("refused", text=str(error))
        worker.kill()


if cluster.is_primary:
    tell_events()
    worker = cluster.fork()
    tell("before", **state_of(worker))

    @worker.on("message")
    def on_message(message: object, handle: None) -> None:
        tell("waits", **state_of(worker))
        kill(worker, sys.argv[1])
        tell("killed", **state_of(worker))

    @worker.on("exit")
    def on_exit(code: int | None, signal: object) -> None:
        tell("after", **state_of(worker))
        worker.kill()
        worker.disconnect()
        tell("still", **state_of(worker))

    cluster.run()
else:
    process.send("waiting")
    if sys.argv[1] == "itself":
        assert cluster.worker is not None
        cluster.worker.kill("SIGTERM")
    while sys.argv[2:] == ["spin"]:
        pass
    time.sleep(60)
