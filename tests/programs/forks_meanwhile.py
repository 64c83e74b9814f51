"""A worker crashes, and the primary forks another one before the crashed one's successor comes."""

import signal

from programs.facts import tell
from pycluster import Worker, cluster

if cluster.is_primary:
    cluster.setup_primary(respawn="on-failure")
    cluster.on("fork", lambda worker: tell("fork", worker=worker.id, slot=worker.slot))

    @cluster.on("exit")
    def on_exit(worker: Worker, code: int | None, number: int | None) -> None:
        if worker.id == 1:
            cluster.fork()

    @cluster.on("listening")
    def on_listening(worker: Worker, address: object) -> None:
        if worker.id == 1:
            worker.process.kill(signal.SIGKILL)
        if len({worker.id for worker in cluster.workers.values() if worker.state == "listening"} - {1}) == 2:
            tell("stats", slots={worker.id: worker.slot for worker in cluster.stats().workers})
            cluster.disconnect()

    cluster.fork()
    cluster.run()
else:
    cluster.listen(("127.0.0.1", 0)).accept()
