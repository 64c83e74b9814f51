"""A peer that is stopped while it is sent messages, 16 KiB each, until send() says False. Argument: who is stopped."""

import os
import signal
import sys
import time
from typing import Any

from programs.facts import tell
from pycluster import Worker, cluster, process

FILLING = "x" * 16384
written: list[int] = []


def send_until_refused(send: Any) -> int:
    """Returns how many were sent; three of them after the first False."""
    sent = 0
    full = None
    while full is None or sent < full + 3:
        ready = send([sent, FILLING], callback=lambda error, n=sent: written.append(n) if error is None else None)
        sent += 1
        if not ready and full is None:
            full = sent
    tell("full", sent=sent, kib=full * 16)
    return sent


class Counter:
    def __init__(self) -> None:
        self.numbers: list[int] = []

    def count(self, message: Any) -> None:
        self.numbers.append(message[0])

    def tell(self, sent: int) -> None:
        tell("arrived", complete=self.numbers == list(range(sent)))


def is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    while not is_stopped(pid):
        time.sleep(0.001)


counter = Counter()
if cluster.is_primary:

    @cluster.on("message")
    def on_message(worker: Worker, message: Any, handle: None) -> None:
        if message == "ready":
            stop(worker.process.pid)
            sent = send_until_refused(worker.send)
            os.kill(worker.process.pid, signal.SIGCONT)
            worker.send(["end", sent], callback=lambda error: tell("written", in_order=written == list(range(sent))))
        elif message[0] == "end":
            counter.tell(message[1])
            worker.disconnect()
        elif message == ["arrived"]:
            worker.disconnect()
        else:
            counter.count(message)

    cluster.on("exit", lambda worker, code, signal: tell("exit", code=code))
    cluster.fork({"PRIMARY": str(os.getpid())})
    cluster.run()
elif sys.argv[1] == "worker":

    def on_message_in_worker(message: Any, handle: None) -> None:
        if message[0] == "end":
            counter.tell(message[1])
            process.send(["arrived"])
        else:
            counter.count(message)

    process.on("message", on_message_in_worker)
    process.send("ready")
else:
    primary = int(os.environ["PRIMARY"])
    stop(primary)
    sent = send_until_refused(process.send)
    os.kill(primary, signal.SIGCONT)
    process.send(["end", sent], callback=lambda error: tell("written", in_order=written == list(range(sent))))
    time.sleep(60)
