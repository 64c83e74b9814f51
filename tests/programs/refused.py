"""Messages that cannot be sent, from both sides: to a worker, and in it. What was sent before and after arrives."""

import time
from collections.abc import Callable
from typing import Any

from programs.facts import tell
from pycluster import Worker, cluster, process


def attempt(name: str, send: Callable[[], bool]) -> None:
    try:
        tell("sent", name=name, returned=send())
    except Exception as error:
        tell("refused", name=name, error=type(error).__name__, text=str(error))


def send_all(send: Callable[..., bool]) -> None:
    attempt("before", lambda: send("before"))
    attempt("object", lambda: send(object()))
    attempt("function", lambda: send([1, {"f": print}]))
    attempt("large", lambda: send("x" * 2000))
    attempt("with callback", lambda: send("y" * 2000, callback=lambda error: tell("never", error=str(error))))
    attempt("after", lambda: send("after"))


if cluster.is_primary:
    cluster.setup_primary(max_message_size=1000)

    @cluster.on("message")
    def on_message(worker: Worker, message: Any, handle: None) -> None:
        tell("got", by="primary", message=message)
        if message == "after":
            send_all(worker.send)

    @cluster.on("disconnect")
    def on_disconnect(worker: Worker) -> None:
        attempt("closed", lambda: worker.send("too late"))
        attempt("closed with callback", lambda: worker.send("x", callback=lambda e: tell("told", of=type(e).__name__)))

    @cluster.on("exit")
    def on_exit(worker: Worker, code: int | None, signal: object) -> None:
        attempt("dead", lambda: worker.send("too late"))
        attempt("dead with callback", lambda: worker.send("x", callback=lambda e: tell("told", of=type(e).__name__)))
        tell("exit", code=code)

    cluster.fork()
    cluster.run()
else:
    worker = cluster.worker
    assert worker is not None

    @worker.on("message")
    def on_message_in_worker(message: Any, handle: None) -> None:
        tell("got", by="worker", message=message)
        if message == "after":
            assert worker is not None
            worker.disconnect()

    @worker.on("disconnect")
    def on_disconnect_in_worker() -> None:
        attempt("closed in worker", lambda: process.send("too late"))
        attempt("closed in worker with callback", lambda: process.send("x", callback=lambda e: tell("told", of=str(e))))

    send_all(process.send)
    time.sleep(60)
