"""A worker that crashes and is forked again in the exit handler, while the primary runs the cluster without run()."""

from programs.facts import tell
from pycluster import Worker, cluster

if cluster.is_primary:

    @cluster.on("exit")
    def respawn(worker: Worker, code: int | None, signal: object) -> None:
        tell("exit", worker=worker.id, code=code)
        if worker.id < 3:
            cluster.fork()

    cluster.fork()
else:
    raise SystemExit(cluster.worker.id)  # type: ignore[union-attr]
