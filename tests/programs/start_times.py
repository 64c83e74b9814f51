"""How long workers take from fork() to `online`, one after the other. Arguments: the start method, how many."""

import sys
import time

from programs.facts import tell
from pycluster import Worker, cluster

if cluster.is_primary:
    cluster.setup_primary(start_method=sys.argv[1])
    took: list[float] = []
    began = 0.0

    def fork() -> None:
        global began
        began = time.monotonic()
        cluster.fork()

    @cluster.on("online")
    def on_online(worker: Worker) -> None:
        took.append(time.monotonic() - began)
        worker.kill()

    @cluster.on("exit")
    def on_exit(*_: object) -> None:
        if len(took) < int(sys.argv[2]):
            fork()

    fork()
    cluster.run()
    tell("took", seconds=took)
else:
    time.sleep(60)
