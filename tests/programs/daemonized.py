"""A primary that daemonizes after its first use of the library. Arguments: the start method, "counter" or "workers".

With "workers" it has had one by then. What daemonizes is waited for by the process that it was.
"""

import os
import sys

from programs.facts import open_descriptors, tell
from pycluster import cluster

method, used = sys.argv[1:]
if cluster.is_primary:
    cluster.setup_primary(start_method=method)
    cluster.counter("x").add(10)
    if used == "workers":
        cluster.fork()
        cluster.run()
    daemon = os.fork()
    if daemon:
        _, status = os.waitpid(daemon, 0)
        os._exit(os.waitstatus_to_exitcode(status))
    cluster.on("exit", lambda worker, code, number: tell("exit", code=code))
    for _ in range(2):
        cluster.fork()
    cluster.run()
    tell("over", x=cluster.counter("x").value)
else:
    cluster.counter("x").add(1)
    tell("worker", regions=[name for name in open_descriptors().values() if "memfd" in name])
