"""What the primary and a worker say to each other on the control channel, apart from the user's own messages."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec

from .errors import ProtocolError
from .script import Script

Policy = Literal["rr", "none"]

# Of what is here, and of what one image of the primary hands on to the next (takeover.py): the library may be replaced
# by another version while the primary runs, and interpreters that it starts, or executes itself, have the new one. So
# they are told this first. REGION_VERSION in the core is that of the shared memory.
TAKEOVER_VERSION = 4


def expect_version(version: Any) -> None:
    """In a fresh interpreter, before it reads what the primary has written for it.

    Raises:
      RuntimeError: that is of another version.
    """
    if version != TAKEOVER_VERSION:
        raise RuntimeError("the primary runs another version of pycluster; start the cluster anew")


class Start(msgspec.Struct):
    """Primary, in the environment of a spawned worker: what a forked one knows as a copy of the primary."""

    id: int
    slot: int
    index: int
    channel: int
    region: int
    version: int
    script: Script
    args: list[str]
    path: list[str]
    settings: dict[str, Any]
    policy: Policy
    takeover: int = TAKEOVER_VERSION


class Template(msgspec.Struct):
    """Primary, in the environment of a template: its end of the socket to the primary, and what it is to import."""

    socket: int
    path: list[str]
    preload: list[str]
    takeover: int = TAKEOVER_VERSION


class Ready(msgspec.Struct):
    """Template: it has imported all, or why it could not."""

    error: str = ""


# Where in its file a request for a clone begins: before it is the worker's process id, 0 as long as there is none.
CLONE_OFFSET = 4


class Clone(msgspec.Struct):
    """Primary, to the template, in a file, behind room for the worker's process id: the worker that is to be.

    Descriptors come along: this file, the control channel, the shared region, those for 0, 1 and 2, and the worker's
    directory, if it `moves` there.
    """

    start: Start
    env: dict[bytes, bytes]
    moves: bool


class Cloned(msgspec.Struct):
    """Template: there is a worker, whose process id is in the request's file, or the errno of what has failed."""

    error: int = 0
    reason: str = ""


class Online(msgspec.Struct, tag=True):
    """Worker: the process has started and listens to its channel."""


class Bind(msgspec.Struct, tag=True):
    """Worker: bind the socket that comes along to `address`, or join the listener that is bound there.

    The address of a Unix socket is an absolute path or an abstract name, as bytes. `index` counts the binds to port 0
    that are meant to be shared: the n-th in every worker is the same listener. `over_stale`: see socketfile.bind_path.
    `umask`: the worker's, where a file is to be made; None for the primary's.
    """

    seq: int
    family: int
    kind: int
    address: tuple[str | int, ...] | bytes
    index: int | None = None
    over_stale: bool = False
    umask: Annotated[int, msgspec.Meta(ge=0, le=0o777)] | None = None


class BindDescriptor(msgspec.Struct, tag=True):
    """Worker: join the listener on the primary's own descriptor `fd`, which the user has opened there."""

    seq: int
    fd: int


class Listen(msgspec.Struct, tag=True):
    """Worker: connections to the listener `key` may come; a descriptor to take them from is asked for."""

    seq: int
    key: int
    backlog: Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]


class Release(msgspec.Struct, tag=True):
    """Worker: the listener `key` is closed here."""

    key: int


class Leave(msgspec.Struct, tag=True):
    """Worker: it wants to disconnect."""


class Drained(msgspec.Struct, tag=True):
    """Worker: its connections are done; nothing follows."""


class Reply(msgspec.Struct, tag=True):
    """Primary: the answer to the request `seq`. `error` is an errno, 0 for none.

    Along comes, for Listen, what to take connections from; for BindDescriptor, and for Bind of a datagram socket, the
    socket itself. `listening`: from now on the worker does. `quiet` says that nothing will come: the worker is
    disconnecting. It is no error, so that a program that is asked to end while it starts ends as quietly as any other.
    """

    seq: int
    error: int = 0
    reason: str = ""
    key: int = 0
    address: Any = None
    cell: int | None = None
    listening: bool = False
    quiet: bool = False


class Disconnect(msgspec.Struct, tag=True):
    """Primary: take no more connections, finish what is accepted, and say Drained."""


class Watch(msgspec.Struct, tag=True):
    """Primary: the file that comes along is for the stacks of this worker, when they are asked for (see heartbeat)."""


FromWorker = Online | Bind | BindDescriptor | Listen | Release | Leave | Drained
FromPrimary = Reply | Disconnect | Watch

encode = msgspec.msgpack.Encoder().encode
_decode_from_worker: Callable[[bytes], FromWorker] = msgspec.msgpack.Decoder(FromWorker).decode
decode_from_primary = msgspec.msgpack.Decoder(FromPrimary).decode


def decode_from_worker(payload: bytes) -> FromWorker:
    """What a worker says, which need not be what this library writes.

    Raises:
      ProtocolError: it is none of the above.
    """
    try:
        return _decode_from_worker(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exception:  # ValueError: text that is no UTF-8
        raise ProtocolError(f"no frame of control: {exception}") from exception
