"""Workers that do not end when they are asked. Arguments: graceful_timeout, then the way of each worker."""

import os
import signal
import sys
import time

from programs.facts import tell, tell_events
from pycluster import cluster, process


def refuse() -> None:
    """Go on whatever comes."""
    while True:
        try:
            cluster.counter("in its way").add()
            tell("refusing")
            time.sleep(60)
        except BaseException as exception:
            tell("refused", what=type(exception).__name__)


def stop() -> None:
    """Hear nothing at all."""
    tell("refusing", way="stop")
    os.kill(os.getpid(), signal.SIGSTOP)


def end_later() -> None:
    """Take some time, but less than is given."""
    try:
        cluster.counter("in its way").add()
        tell("refusing")
        time.sleep(60)
    finally:
        time.sleep(0.2)
        tell("cleaned up")


def ask() -> None:
    """Be the one that stops the whole cluster, by a message, once another one is in its way."""
    while not cluster.counter("in its way").value:
        time.sleep(0.01)
    process.send("stop all")
    time.sleep(60)


if cluster.is_primary:
    tell_events()
    cluster.on("message", lambda worker, message, handle: cluster.disconnect())
    cluster.setup_primary(graceful_timeout=float(sys.argv[1]))
    for way in sys.argv[2:]:
        cluster.fork({"WAY": way})
    tell("ready")
    cluster.run()
    tell("over")
else:
    {"refuse": refuse, "stop": stop, "end later": end_later, "ask": ask}[os.environ["WAY"]]()
