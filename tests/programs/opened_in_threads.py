"""Two threads of a worker open listeners time and again; one closes its, one shuts its down. Argument: how often."""

import os
import socket
import sys
import threading

from programs.facts import tell
from pycluster import cluster

if cluster.is_primary:
    cluster.fork()
    cluster.run()
else:
    name = f"\0pycluster-threads-{os.getppid()}-"
    done = {"closed": 0, "shut_down": 0}

    def open_and_close() -> None:
        for _ in range(int(sys.argv[1])):
            cluster.listen(name + "closed").close()
            done["closed"] += 1

    def open_and_shut_down() -> None:
        for _ in range(int(sys.argv[1])):
            with cluster.listen(name + "shut") as listener:
                listener.shutdown(socket.SHUT_RD)
            done["shut_down"] += 1

    threads = [threading.Thread(target=target) for target in (open_and_close, open_and_shut_down)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tell("opened", **done)
    sys.exit()
