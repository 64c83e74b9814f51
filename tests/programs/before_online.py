"""A primary to which workers say something else before they say that they are online."""

import subprocess

from programs.facts import open_descriptors, tell
from programs.hostile import Liar
from pycluster import cluster, protocol
from pycluster.channel import CONTROL

FRAMES: dict[str, list[protocol.FromWorker]] = {
    "a listen": [protocol.Listen(1, 1, 1)],
    "a release": [protocol.Release(1)],
    "a leave": [protocol.Leave()],
    "a listen when it is online": [protocol.Online(), protocol.Listen(1, 1, 1)],
}


def frame(said: protocol.FromWorker) -> bytes:
    payload = protocol.encode(said)
    return len(payload).to_bytes(4, "little") + bytes([CONTROL, 0, 0, 0]) + payload


if __name__ == "__main__":
    primary = cluster._as_primary("run")
    cluster.counter("it")  # the shared region, which stays
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        before = open_descriptors()
        for number, (what, said) in enumerate(FRAMES.items(), 1):
            liar = Liar(primary, sleeper.pid, number)
            liar.theirs.send(b"".join(map(frame, said)))
            primary.dispatch(0)
            tell("said", what=what, closed=liar.member.channel.closed)
            liar.end()
        primary.dispatch(0)
        tell("after", same=open_descriptors() == before)
        sleeper.kill()
