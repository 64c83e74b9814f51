"""A worker whose script ends: it stays for messages while somebody listens for them. Argument: where the handler is."""

import sys
from typing import Any

from programs.facts import tell
from pycluster import Worker, cluster, process

if cluster.is_primary:
    answers = 0

    @cluster.on("message")
    def on_message(worker: Worker, message: Any, handle: None) -> None:
        global answers
        answers += 1
        if answers < 4:
            worker.send(answers)
        else:
            tell("answers", connected=worker.is_connected(), dead=worker.is_dead())
            worker.disconnect()

    @cluster.on("exit")
    def on_exit(worker: Worker, code: int | None, signal: object) -> None:
        tell("exit", code=code, asked=worker.exited_after_disconnect, answers=answers)

    cluster.fork()
    cluster.run()
else:

    def echo(message: Any, handle: None) -> None:
        process.send(message)

    if sys.argv[1] == "process":
        process.on("message", echo)
    elif sys.argv[1] == "worker":
        assert cluster.worker is not None
        cluster.worker.on("message", echo)
    process.send("the script has ended")
