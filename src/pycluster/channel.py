"""The control channel: frames over a Unix stream socket, in order, each with up to one descriptor.

Both ends use this class: the primary one per worker in its dispatching thread, a worker one in its control thread.
Sending is safe from any thread and never blocks: what the socket does not take waits in memory, in order. The owner
of the channel calls `receive` and `flush` when its epoll says so, and is the only one who closes it.
"""

import array
import errno
import itertools
import os
import select
import socket
import stat
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from .errors import ChannelClosedError, ProtocolError

# length of the payload, kind, number of descriptors, reserved
_HEADER = struct.Struct("<IBBH")

CONTROL = 0
MESSAGE = 1

# Node.js stops saying "send more" at twice its pipe's 64 KiB (lib/internal/child_process.js).
HIGH_WATER_MARK = 128 * 1024
# Unix sockets copy: larger reads than this save no time, and smaller ones cost more calls.
READ_SIZE = 256 * 1024
# The library's own frames are a few hundred bytes.
CONTROL_LIMIT = 64 * 1024
# Too many descriptors in flight, or too little memory: try again after so long.
RETRY_S = 0.02
# Frames per sendmsg; the kernel takes up to 1024 buffers (UIO_MAXIOV), two a frame.
BATCH = 64
# The kernel passes at most 253 descriptors at a time (SCM_MAX_FD); a frame has one, and one read few frames with one.
_ANCILLARY_SIZE = socket.CMSG_SPACE(253 * 4)

Callback = Callable[[BaseException | None], object]
Handle = socket.socket | int


class HasFileno(Protocol):
    """What can be sent along with a message, beside sockets: files, pipes, …"""

    def fileno(self) -> int: ...

    def close(self) -> object: ...


class Frame(NamedTuple):
    """A received frame. Whoever gets it owns its descriptor."""

    kind: int
    payload: bytes
    fd: int | None


class _Outgoing:
    """A frame on its way, or what is left of it."""

    __slots__ = ("buffers", "callback", "fd", "left")

    def __init__(self, kind: int, payload: bytes, fd: int | None, callback: Callback | None) -> None:
        self.buffers: list[memoryview] = [
            memoryview(_HEADER.pack(len(payload), kind, fd is not None, 0)),
            memoryview(payload),
        ]
        self.left = _HEADER.size + len(payload)
        self.fd = fd
        self.callback = callback


class Channel:
    """One end of a control channel."""

    def __init__(
        self,
        sock: socket.socket,
        epoll: select.epoll,
        *,
        serialization: Literal["msgpack", "json"],
        max_message_size: int,
        defer: Callable[[Callable[[], object]], None],
    ) -> None:
        """Own `sock` from now on, and register it in `epoll` (borrowed).

        Args:
          max_message_size: in bytes, of an encoded message, both ways.
          defer: runs a function soon, in the thread that the owner's callbacks run in.
        """
        sock.setblocking(False)
        self._sock = sock
        self._epoll = epoll
        self._defer = defer
        self._max_message_size = max_message_size
        codec = msgspec.msgpack if serialization == "msgpack" else msgspec.json
        self._encode: Callable[[Any], bytes] = codec.Encoder().encode
        self._decode: Callable[[bytes], Any] = codec.Decoder().decode
        self._lock = threading.Lock()
        self._outgoing: deque[_Outgoing] = deque()
        self._queued = 0
        self._waits = False  # for the epoll to say that there is room
        self._rests = False  # until a timer has run out
        self._incoming = bytearray()
        self._descriptors: deque[int | None] = deque()  # None: it came, and did not fit into our table
        self.closed = False
        self.exhausted = False  # whether the last `receive` found nothing
        epoll.register(sock, select.EPOLLIN)

    def fileno(self) -> int:
        """The descriptor, -1 once closed."""
        return self._sock.fileno()

    # Sending

    def send_control(self, payload: bytes, fd: int | None = None) -> None:
        """Send a frame of the library's own; `fd` is duplicated. On a closed channel, nothing happens."""
        self._send(CONTROL, payload, None if fd is None else os.dup(fd), None)

    def send_message(
        self,
        message: object,
        handle: Handle | HasFileno | None,
        keep_open: bool,
        callback: Callback | None,
    ) -> bool:
        """Send a message of the user's; see `Worker.send`."""
        payload = self._encode_message(message)
        fd = None if handle is None else os.dup(handle if isinstance(handle, int) else handle.fileno())
        if not self._send(MESSAGE, payload, fd, callback):
            error = ChannelClosedError("the channel is closed; check is_connected() before send()")
            if callback is None:
                raise error
            self._defer(lambda: callback(error))
            return False
        if handle is not None and not keep_open:
            if isinstance(handle, int):
                os.close(handle)
            else:
                handle.close()
        return self._queued < HIGH_WATER_MARK

    def _encode_message(self, message: object) -> bytes:
        try:
            payload = self._encode(message)
        except (TypeError, ValueError, OverflowError, RecursionError) as exception:
            raise TypeError(f"a message of type {type(message).__name__} cannot be encoded: {exception}") from exception
        if len(payload) > self._max_message_size:
            raise ValueError(
                f"the message has {len(payload)} bytes; settings.max_message_size allows {self._max_message_size}"
            )
        return payload

    def _send(self, kind: int, payload: bytes, fd: int | None, callback: Callback | None) -> bool:
        """Queue a frame and write what the socket takes. Owns `fd`. Returns whether the channel was open."""
        with self._lock:
            if self.closed:
                if fd is not None:
                    os.close(fd)
                return False
            idle = not self._outgoing
            self._outgoing.append(_Outgoing(kind, payload, fd, callback))
            self._queued += _HEADER.size + len(payload)
            if idle:
                self._write()
                self._watch()
            return True

    def flush(self) -> None:
        """Write what waits, as much as the socket takes; called when the descriptor is writable."""
        with self._lock:
            if not self.closed:
                self._rests = False
                self._write()
                self._watch()

    def _watch(self) -> None:
        """Ask the epoll for room to write, if that is what is waited for."""
        waits = bool(self._outgoing) and not self._rests
        if waits != self._waits:
            self._waits = waits
            self._epoll.modify(self._sock, select.EPOLLIN | (select.EPOLLOUT if waits else 0))

    @property
    def backlogged(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._outgoing)

    def _write(self) -> None:
        while self._outgoing:
            first = self._outgoing[0]
            buffers = first.buffers[:]
            ancillary = []
            if first.fd is not None:
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [first.fd]))]
            for frame in itertools.islice(self._outgoing, 1, BATCH):
                if frame.fd is not None:
                    break  # its descriptor must go with its own first byte
                buffers += frame.buffers
            try:
                written = self._sock.sendmsg(buffers, ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError as exception:
                if exception.errno in (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM):
                    # It passes, but no epoll says when.
                    self._rests = True
                    timer = threading.Timer(RETRY_S, self.flush)
                    timer.daemon = True
                    timer.start()
                    return
                # The peer is gone; the owner learns it from the end of what is to be read.
                self._fail(exception)
                return
            self._consume(written)

    def _consume(self, written: int) -> None:
        """Take `written` bytes off the queue."""
        self._queued -= written
        while self._outgoing:
            first = self._outgoing[0]
            if first.fd is not None:
                os.close(first.fd)
                first.fd = None
            if written < first.left:
                first.left -= written
                while written >= len(first.buffers[0]):
                    written -= len(first.buffers.pop(0))
                first.buffers[0] = first.buffers[0][written:]
                return
            written -= first.left
            self._outgoing.popleft()
            if first.callback is not None:
                self._defer(lambda callback=first.callback: callback(None))  # type: ignore[misc]
            if not written:
                return

    def _fail(self, exception: BaseException) -> None:
        while self._outgoing:
            frame = self._outgoing.popleft()
            if frame.fd is not None:
                os.close(frame.fd)
            if frame.callback is not None:
                self._defer(lambda callback=frame.callback: callback(exception))  # type: ignore[misc]
        self._queued = 0

    # Receiving

    def receive(self) -> Iterator[Frame]:
        """Read once and yield the frames that are complete by then.

        Raises:
          EOFError: the peer has closed, after the frames before that.
          ProtocolError: what came is no frame. The channel is of no use any more.
        """
        try:
            chunk, ancillary, flags, _ = self._sock.recvmsg(READ_SIZE, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            self.exhausted = True
            return
        except ConnectionResetError:
            # The peer has closed with unread frames of ours.
            raise EOFError from None
        for level, kind, body in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors = array.array("i")
                descriptors.frombytes(body[: len(body) - len(body) % descriptors.itemsize])
                self._descriptors.extend(descriptors)
        self.exhausted = False
        if flags & socket.MSG_CTRUNC:
            self._descriptors.append(None)
        if not chunk:
            raise EOFError
        self._incoming += chunk
        yield from self._frames()

    def _frames(self) -> Iterator[Frame]:
        # Each frame leaves the buffer before it is yielded: its handler may call `receive` itself.
        while len(self._incoming) >= _HEADER.size:
            length, kind, descriptors, reserved = _HEADER.unpack_from(self._incoming)
            if kind not in (CONTROL, MESSAGE) or descriptors > 1 or reserved:
                raise ProtocolError(f"no frame starts with {bytes(self._incoming[: _HEADER.size])!r}")
            limit = CONTROL_LIMIT if kind == CONTROL else self._max_message_size
            if length > limit:
                raise ProtocolError(f"a frame of {length} bytes where at most {limit} are allowed")
            end = _HEADER.size + length
            if len(self._incoming) < end:
                break
            fd = None
            if descriptors:
                if not self._descriptors:
                    raise ProtocolError("a frame announces a descriptor, and none came")
                fd = self._descriptors.popleft()
            payload = bytes(self._incoming[_HEADER.size : end])
            del self._incoming[:end]
            yield Frame(kind, payload, fd)
        # A descriptor comes with the first byte of its frame, so one may be early, for the frame that is incomplete.
        if len(self._descriptors) > (len(self._incoming) > 0):
            raise ProtocolError("more descriptors came than frames announce")

    def decode_message(self, frame: Frame) -> tuple[object, Handle | None]:
        """The user's message and handle in a frame.

        Raises:
          ProtocolError: the payload is not what the serialization in force writes.
        """
        try:
            message = self._decode(frame.payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exception:
            if frame.fd is not None:
                os.close(frame.fd)
            raise ProtocolError(f"a message cannot be decoded: {exception}") from exception
        return message, None if frame.fd is None else _as_handle(frame.fd)

    # Closing

    def close(self) -> None:
        """Close this end; frames that wait are failed. Idempotent."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            self._fail(ChannelClosedError("the channel was closed before the message was written"))
            for fd in self._descriptors:
                if fd is not None:
                    os.close(fd)
            self._descriptors.clear()
            self._epoll.unregister(self._sock)
            # Wakes the lifeline, whose poll would keep the socket open (see the core).
            try:
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            self._sock.close()

    def abandon(self) -> None:
        """Close a forked child's copy, without a word to the peer."""
        self.closed = True
        self._sock.close()


def _as_handle(fd: int) -> Handle:
    """A socket for a socket's descriptor, else the descriptor itself."""
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        return socket.socket(fileno=fd)
    return fd
