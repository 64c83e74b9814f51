"""Workers that come and go: what the primary has open afterwards. Arguments: port, cycles, "silent"."""

import gc
import os
import sys
import time

from programs.facts import open_descriptors, tell
from pycluster import Worker, cluster, process

port, cycles = int(sys.argv[1]), int(sys.argv[2])


def opened() -> list[str]:
    return sorted(link.split(":[")[0] for link in open_descriptors().values())


def threads() -> int:
    """How many there are. One that has been joined leaves the kernel's list a moment later."""
    deadline = time.monotonic() + 1
    while (count := len(os.listdir("/proc/self/task"))) > 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    return count


if cluster.is_primary:
    ways = ["disconnected", "killed", "ends", "crashes"]

    @cluster.on("listening")
    def on_listening(worker: Worker, address: object) -> None:
        way = ways[worker.id % 4]
        if way == "disconnected":
            worker.disconnect()
        elif way == "killed":
            worker.kill("SIGKILL")
        else:
            worker.send(way)

    cluster.setup_primary(silent="silent" in sys.argv)
    for cycle in range(cycles + 1):
        cluster.fork()
        cluster.run()
        gc.collect()  # the pipes to silent workers are closed with the objects of these
        tell("cycle", number=cycle, opened=opened(), threads=threads())
else:
    process.on("message", lambda message, handle: os._exit(0 if message == "ends" else 9))
    cluster.listen(("127.0.0.1", port)).accept()
