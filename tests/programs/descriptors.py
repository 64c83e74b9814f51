"""What descriptors a worker has: the user's of the primary, and none of the library's. Arguments: port, "rr" or "none".

The second worker is forked when the first one listens, so that it could inherit all that the library opens for one.
"""

import os
import sys
import tempfile
import time

from programs.facts import open_descriptors, tell, tell_events
from programs.listening import listening_rows
from pycluster import Worker, cluster, process

port, policy = int(sys.argv[1]), sys.argv[2]


def listening_inodes() -> list[str]:
    return [row[9] for row in listening_rows(port)]


if cluster.is_primary:
    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(b"user's")
    file.flush()
    tell_events()
    cluster.scheduling_policy = "rr" if policy == "rr" else "none"
    cluster.fork({"USERS": str(file.fileno())})

    @cluster.on("listening")
    def on_listening(worker: Worker, address: object) -> None:
        if worker.id < 3:
            cluster.fork({"USERS": str(file.fileno())})

    told: set[int] = set()

    @cluster.on("message")
    def on_message(worker: Worker, message: object, handle: None) -> None:
        told.add(worker.id)
        if told == {1, 2, 3}:
            tell("primary", descriptors=open_descriptors(), listening=listening_inodes())
            cluster.disconnect()

    cluster.run()
else:
    tell("at start", descriptors=open_descriptors())
    sock = cluster.listen(("127.0.0.1", port))
    users = int(os.environ["USERS"])
    tell("worker", descriptors=open_descriptors(), listening=listening_inodes(), users=os.pread(users, 99, 0).decode())
    process.send("told")
    time.sleep(60)
