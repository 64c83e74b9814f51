"""A signal handler forks while the script does: the signal comes when the script's worker is half started."""

import os
import signal

from programs.facts import open_descriptors, tell
from pycluster import Worker, cluster

if cluster.is_primary:
    signal.signal(signal.SIGUSR2, lambda *_: cluster.fork())
    signals = [signal.SIGUSR2]

    def be_signalled() -> None:
        if signals:
            os.kill(os.getpid(), signals.pop())  # blocked until the fork is over, the start not yet

    os.register_at_fork(after_in_parent=be_signalled)

    @cluster.on("exit")
    def on_exit(worker: Worker, code: int | None, number: object) -> None:
        tell("exit", worker=worker.id, code=code)

    first = cluster.fork()
    tell("forked", first=first.id, slots={number: worker.slot for number, worker in cluster.workers.items()})
    cluster.run()
else:
    tell("open", descriptors=len(open_descriptors()))
