"""A primary with an event loop of its own: select() on cluster.fileno() and on a pipe of the user's."""

import os
import select
import time

from programs.facts import tell, tell_events
from pycluster import cluster, process

if cluster.is_primary:
    tell_events()
    reader, writer = os.pipe()
    readable, _, _ = select.select([cluster.fileno()], [], [], 0)
    tell("pending", pending=bool(readable))
    cluster.fork()
    readable, _, _ = select.select([cluster.fileno()], [], [], 0)
    tell("pending", pending=bool(readable))
    os.write(writer, b"mine")
    rounds = 0
    while cluster.workers:
        readable, _, _ = select.select([cluster.fileno(), reader], [], [], 10)
        rounds += 1
        if reader in readable:
            tell("pipe", text=os.read(reader, 10).decode())
        if cluster.fileno() in readable:
            cluster.dispatch()
    tell("over", idle=select.select([cluster.fileno()], [], [], 0)[0] == [], few=rounds < 30)
    started = time.monotonic()
    cluster.dispatch()
    cluster.dispatch(0.05)
    tell("waited", long_enough=time.monotonic() - started >= 0.04)
else:
    process.send("hello")
