"""Workers that ask and ask: one reads the answers, others do not."""

import array
import contextlib
import os
import socket
import subprocess
from collections.abc import Callable

from programs.before_online import frame
from programs.facts import open_descriptors, tell
from programs.hostile import Liar, well_formed
from pycluster import cluster, protocol
from pycluster.primary import Primary

REQUESTS = 3000
BATCH = 20


def ask(primary: Primary, liar: Liar, request: bytes, read: Callable[[], object]) -> None:
    """Ask for the same again and again, as long as the primary listens, and tell what it had open meanwhile."""
    before = most = len(open_descriptors())
    for _ in range(REQUESTS // BATCH):
        if not liar.member.channel.closed:
            liar.theirs.sendall(request * BATCH)
            primary.dispatch(0)
            read()
            most = max(most, len(open_descriptors()))
    tell("asked", closed=liar.member.channel.closed, opened=most - before)


def read_all(sock: socket.socket) -> None:
    """Read what has come, and close the descriptors that came along."""
    with contextlib.suppress(BlockingIOError):
        while True:
            _, fds, _, _ = socket.recv_fds(sock, 65536, 1)
            for fd in fds:
                os.close(fd)


if __name__ == "__main__":
    primary = cluster._as_primary("run")
    cluster.counter("it")  # the shared region, which stays
    listen = frame(protocol.Listen(5, 1, 10))
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        liars = [Liar(primary, sleeper.pid, number) for number in (1, 2, 3)]
        (online, _), (bind, _) = well_formed()[:2]
        for liar in liars:
            liar.theirs.send(online)
        with socket.socket() as sock:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))]
            for liar in liars[:2]:
                liar.theirs.sendmsg([bind], rights)
                primary.dispatch(0)
        ask(primary, liars[0], listen, lambda: read_all(liars[0].theirs))
        ask(primary, liars[1], listen, lambda: None)
        ask(primary, liars[2], listen, lambda: None)  # it has not bound
        for liar in liars:
            liar.end()
        sleeper.kill()
