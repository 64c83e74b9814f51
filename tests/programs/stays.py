"""A worker whose script ends: it stays for messages while somebody listens for them.

Argument: where the handler is, or how it goes.
"""

import sys
import threading
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
            worker.send(answers, callback=lambda error: None)  # to a worker that may be gone
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

    def echo_and_go(message: Any, handle: None) -> None:
        process.remove_listener("message", echo_and_go)
        echo(message, handle)

    def echo_later(message: Any, handle: None) -> None:
        with cluster.listen(("127.0.0.1", 0)):  # which waits for the primary, long after this listener has gone
            echo(message, handle)

    def remove_all() -> None:
        heard.wait()
        process.remove_all_listeners("message")

    where = sys.argv[1]
    if where == "process":
        process.on("message", echo)
    elif where == "worker":
        assert cluster.worker is not None
        cluster.worker.on("message", echo)
    elif where == "once":
        process.once("message", echo_later)
    elif where == "goes":
        process.on("message", echo_and_go)
    elif where == "is removed by a thread":
        heard = threading.Event()
        process.on("message", lambda message, handle: heard.set())
        threading.Thread(target=remove_all, daemon=True).start()
    process.send("the script has ended")
