"""Exit functions, temporary directories and finalizers of the primary and of a worker. Argument: the worker's end."""

import atexit
import os
import sys
import tempfile
import threading
import time
import weakref

from programs.facts import tell
from pycluster import Worker, cluster


class Thing:
    pass


if cluster.is_primary:
    atexit.register(tell, "atexit", by="primary")
    thing = Thing()
    weakref.finalize(thing, tell, "finalized", by="primary")
    directory = tempfile.TemporaryDirectory()
    deleted_with_worker = os.path.join(directory.name, "of the worker")

    @cluster.on("exit")
    def on_exit(worker: Worker, code: int | None, signal: object) -> None:
        there = os.path.isdir(directory.name)
        tell("exit", code=code, there=there, content=os.listdir(directory.name) if there else None)

    cluster.fork({"DIRECTORY": directory.name})
    cluster.run()
    tell("over", there=os.path.isdir(directory.name))
    directory.cleanup()
else:
    atexit.register(tell, "atexit", by="worker")
    own_thing = Thing()
    weakref.finalize(own_thing, tell, "finalized", by="worker")
    own = tempfile.TemporaryDirectory(dir=os.environ["DIRECTORY"])
    way = sys.argv[1]
    if way == "exits":
        sys.exit(3)
    elif way == "disconnects":
        assert cluster.worker is not None
        cluster.worker.disconnect()
        time.sleep(60)
    elif way == "raises":
        raise LookupError("this one")
    elif way == "thread":

        def work() -> None:
            time.sleep(0.1)
            tell("worked")

        threading.Thread(target=work).start()
