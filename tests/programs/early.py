"""Messages that are sent before the worker's script has come to listen for them."""

import time
from typing import Any

from programs.facts import tell
from pycluster import cluster, process

if cluster.is_primary:
    worker = cluster.fork()
    worker.send("first")
    worker.send("second")
    cluster.run()
else:

    def on_message(message: Any, handle: None) -> None:
        tell("got", message=message)
        if message == "second":
            process.disconnect()

    # Long enough for the messages to be here first; were they lost, the worker would wait for them in vain.
    time.sleep(0.2)
    process.on("message", on_message)
