"""Workers that are disconnected at the moment in which they enter accept(). Arguments: port, how many in turn."""

import sys

from programs.facts import tell
from pycluster import cluster

if cluster.is_primary:
    cluster.on("listening", lambda worker, address: worker.disconnect())
    cluster.on("exit", lambda worker, code, signal: tell("exit", worker=worker.id, code=code))
    for _ in range(int(sys.argv[2])):
        cluster.fork()
        cluster.run()
    tell("over")
else:
    cluster.listen(("127.0.0.1", int(sys.argv[1]))).accept()
