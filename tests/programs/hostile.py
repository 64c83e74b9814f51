"""A worker that serves, and frames that no honest worker sends. Arguments: how many, port, seed, seconds at most.

The frames are mutations of what the library says, with up to three descriptors or as many as fit, and they come on
channels of workers that only the primary believes in: their process is one that sleeps, so that a million of them costs
no million processes. The primary is the real one, and handles them between its other events.
"""

import array
import functools
import os
import random
import signal
import socket
import sys
import tempfile
import time

from programs.facts import open_descriptors, tell
from pycluster import Worker, _cluster, cluster, protocol
from pycluster.channel import Channel
from pycluster.member import Member
from pycluster.primary import Primary
from pycluster.requests import REBIND_S

SENT = [socket.AF_INET, socket.AF_UNIX]
ABSTRACT = b"\0pycluster-hostile"
BATCH = 50  # frames on one channel, as long as it lives


def well_formed() -> list[tuple[bytes, bool]]:
    """Frames as an honest worker sends them, and whether a socket goes along."""
    stream = int(socket.SOCK_STREAM)
    said: list[tuple[protocol.FromWorker, bool]] = [
        (protocol.Online(), False),
        (protocol.Bind(1, int(socket.AF_INET), stream, ("127.0.0.1", 0)), True),
        (protocol.Bind(2, int(socket.AF_UNIX), stream, ABSTRACT), True),
        (protocol.Bind(3, int(socket.AF_INET), int(socket.SOCK_DGRAM), ("127.0.0.1", 0)), True),
        (protocol.BindDescriptor(4, 0), False),
        (protocol.Listen(5, 1, 10), False),
        (protocol.Listen(6, 2, 10), False),
        (protocol.Release(1), False),
        (protocol.Leave(), False),
        (protocol.Drained(), False),
    ]
    frames = [(_frame(0, protocol.encode(message), with_socket), with_socket) for message, with_socket in said]
    deep = b"\x82\xa4type\xa6Online\xa1x" + b"\x91" * 20000 + b"\xc0"
    frames.append((_frame(0, deep, False), False))
    message = protocol.encode([1, "two", {"three": b"4"}])
    return [*frames, (_frame(1, message, False), False), (_frame(1, message, True), True)]


def _frame(kind: int, payload: bytes, with_socket: bool) -> bytes:
    return len(payload).to_bytes(4, "little") + bytes([kind, with_socket, 0, 0]) + payload


def mutate(frame: bytes, chance: random.Random) -> bytes:
    """Change, cut, repeat, insert; now and then nothing."""
    data = bytearray(frame)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 4))):
        at = chance.randrange(len(data)) if data else 0
        way = chance.randrange(6)
        if way == 0 and data:
            data[at] ^= 1 << chance.randrange(8)
        elif way == 1 and data:
            data[at] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        elif way == 2:
            del data[at:]  # truncated: the next frame follows at once
        elif way == 3:
            data[at:at] = data[at : at + chance.randrange(1, 9)]
        elif way == 4:
            data[at:at] = chance.randbytes(chance.randrange(1, 9))
        else:
            data[:4] = chance.choice((0, 1, 2**16, 2**16 + 1, 2**26, 2**31, 2**32 - 1, len(data))).to_bytes(4, "little")
    return bytes(data)


class Liar:
    """A worker that the primary believes in, and the other end of its channel."""

    def __init__(self, primary: Primary, pid: int, number: int) -> None:
        self._primary = primary
        ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        slot = _cluster.acquire_slot(number)
        channel = Channel(
            ours,
            primary._loop.poll,
            slot,
            serialization="msgpack",
            max_message_size=10**6,
            defer=primary._defer_callback,
        )
        worker = Worker(number, 1, pid, primary, primary._report)
        worker.on("error", lambda exception: None)
        self.member = Member(worker, slot, os.pidfd_open(pid), channel, rights=None)
        _cluster.describe_slot(slot, pid, 0)
        primary._members[number] = self.member
        primary._workers[number] = worker
        primary._loop.watch(channel.fileno(), functools.partial(primary._on_channel, self.member))

    def end(self) -> None:
        """The same as the end of its process."""
        primary, member = self._primary, self.member
        self.theirs.close()
        primary._close_channel(member)
        os.close(member.pidfd)
        primary._listeners.forget(member.worker.id)
        del primary._members[member.worker.id]
        del primary._workers[member.worker.id]
        _cluster.release_slot(member.index)


def descriptors_for(with_socket: bool, chance: random.Random) -> list[int]:
    """What goes along: mostly what should, else nothing, a file, several, or as many as the kernel takes."""
    way = chance.random()
    if way < 0.8:
        return [socket.socket(chance.choice(SENT)).detach()] if with_socket else []
    if way < 0.995:
        return [os.dup(0) for _ in range(chance.randrange(4))]
    return [os.dup(0) for _ in range(253)]


def attack(primary: Primary, count: int, seed: int, seconds: float) -> int:
    chance = random.Random(seed)
    frames = well_formed()
    deadline = time.monotonic() + seconds
    sleeper = os.fork()
    if sleeper == 0:
        signal.pause()
    sent = 0
    number = 10**6
    while sent < count and time.monotonic() < deadline:
        number += 1
        liar = Liar(primary, sleeper, number)
        for _ in range(BATCH):
            frame, with_socket = chance.choice(frames)
            data = mutate(frame, chance)
            fds = descriptors_for(with_socket, chance) if data else []
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                liar.theirs.sendmsg([data], rights)
            except OSError:
                break  # closed, or full
            finally:
                for fd in fds:
                    os.close(fd)
            sent += 1
            primary.dispatch(0)
            if liar.member.channel.closed:
                break
        primary.dispatch(0)
        liar.end()
    os.kill(sleeper, signal.SIGKILL)
    os.waitpid(sleeper, 0)
    return sent


def memory_kib() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def main() -> None:
    count, port, seed, seconds = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    if cluster.worker is not None:
        listener = cluster.listen(("127.0.0.1", port))
        while True:
            connection, _ = listener.accept()
            connection.sendall(b"worker %d" % cluster.worker.id)
            connection.close()
    os.chdir(tempfile.mkdtemp())  # where the mutation of an abstract name binds
    cluster.fork()
    while cluster.workers[1].state != "listening":
        cluster.dispatch(1)
    primary = cluster._as_primary("run")
    attack(primary, min(count, 200), seed + 1, seconds)
    cluster.dispatch(0)
    before, memory = open_descriptors(), memory_kib()
    sent = attack(primary, count, seed, seconds)
    end = time.monotonic() + 2 * REBIND_S  # binds that wait for another worker to let go of the port
    while time.monotonic() < end:
        cluster.dispatch(0.1)
    after = open_descriptors()
    kept = {handle.sock.fileno() for handle in primary._listeners}  # ports stay open for the next worker
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        answer = client.recv(100).decode()
    tell(
        "attacked",
        sent=sent,
        leaked=[name for fd, name in after.items() if fd not in before and fd not in kept],
        grown_kib=memory_kib() - memory,
        answer=answer,
        state=cluster.workers[1].state,
    )
    cluster.disconnect()
    cluster.run()


if __name__ == "__main__":
    main()
