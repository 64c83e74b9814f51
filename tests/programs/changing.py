"""Workers run a script that is another one for each of them, of the same size. Argument: where it is to be."""

import sys

from programs.facts import tell_events
from pycluster import cluster

versions = ["1", "2", "?", "3"]


def fork_next(*_: object) -> None:
    if versions:
        with open(sys.argv[1], "w") as file:
            file.write(f"from programs.facts import tell\ntell('ran', version={versions.pop(0)})\n")
        cluster.fork()


tell_events()
cluster.setup_primary(exec=sys.argv[1])
cluster.on("exit", fork_next)
fork_next()
cluster.run()
