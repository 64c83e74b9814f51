"""Event handlers of all sorts: decorated, once, removed, failing.

Arguments: "error" to listen for errors, "fails" to fail there, too.
"""

import sys

from programs.facts import tell
from pycluster import Worker, cluster

if cluster.is_primary:

    @cluster.on("online")
    def decorated(worker: Worker) -> None:
        tell("heard", by="decorated", worker=worker.id)

    @cluster.on("online")
    def failing(worker: Worker) -> None:
        raise LookupError(f"handler for {worker.id}")

    @cluster.once("online")
    def only_once(worker: Worker) -> None:
        tell("heard", by="once", worker=worker.id)

    def removed(worker: Worker) -> None:
        tell("heard", by="removed", worker=worker.id)

    def plain(worker: Worker) -> None:
        tell("heard", by="plain", worker=worker.id)

    cluster.on("online", removed)
    cluster.on("online", plain)
    cluster.remove_listener("online", removed)
    if "error" in sys.argv:

        @cluster.on("error")
        def on_error(exception: Exception) -> None:
            tell("error", type=type(exception).__name__, text=str(exception))

            if "fails" in sys.argv:
                raise ValueError("even the handler of errors fails")

    for _ in range(2):
        worker = cluster.fork()

        @worker.on("exit")
        def on_exit(code: int | None, signal: object) -> None:
            tell("exit", code=code)
            raise LookupError("a worker's handler fails")

    cluster.run()
    tell("over")
