"""The control channel: frames over a Unix stream socket, in order, each with up to one descriptor.

Both ends use this class: the primary one per worker in its dispatching thread, a worker one in its control thread.
Sending is safe from any thread and never blocks: what the socket does not take waits in memory, in order. The owner
of the channel calls `receive` and `flush` when its epoll says so, and is the only one who closes it. The frames
themselves, and when they are written, are the core's (part 5); here are messages, handles and callbacks.
"""

import contextlib
import functools
import os
import socket
import stat
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import msgspec

from . import _cluster, native
from .descriptors import is_channel
from .errors import ChannelClosedError, ProtocolError

CONTROL = 0
MESSAGE = 1

# Node.js stops saying "send more" at twice its pipe's 64 KiB (lib/internal/child_process.js).
HIGH_WATER_MARK = 128 * 1024
# Answers may hold a descriptor of ours each, and must not pile up when a worker asks and never reads. In an honest one
# a thread waits for each; and those that wait here are beyond the 200 to 300 that the socket takes.
WAITING_CONTROL_MAX = 128
# Too many descriptors in flight, or too little memory: try again after so long.
RETRY_S = 0.02

Callback = Callable[[BaseException | None], object]
Handle = socket.socket | int
# A received frame: its kind, its payload, and its descriptor, which whoever gets it owns.
Frame = tuple[int, bytes, int | None]


class HasFileno(Protocol):
    """What can be sent along with a message, beside sockets: files, pipes, …"""

    def fileno(self) -> int: ...


class Channel:
    """One end of a control channel."""

    def __init__(
        self,
        sock: socket.socket,
        poll: _cluster.Poll,
        index: int | None,
        *,
        serialization: Literal["msgpack", "json"],
        max_message_size: int,
        defer: Callable[[Callable[[], object]], None],
    ) -> None:
        """Own `sock` from now on, and register it in the epoll that `poll` waits for.

        Args:
          index: of the worker's slot in the shared region; None for an end without a region.
          max_message_size: in bytes, of an encoded message, both ways.
          defer: runs a function soon, in the thread that the owner's callbacks run in.
        """
        sock.setblocking(False)
        self._sock = sock
        self._wire = _cluster.Wire(sock.fileno(), poll, max_message_size, index)
        # Read once, and iterate over the frames that are complete by then; see there.
        self.receive: Callable[[], Iterator[Frame]] = self._wire.receive
        self._defer = defer
        self.serialization = serialization
        self.max_message_size = max_message_size
        codec = msgspec.msgpack if serialization == "msgpack" else msgspec.json
        self._encode: Callable[[Any], bytes] = codec.Encoder().encode
        self._decode: Callable[[bytes], Any] = codec.Decoder().decode
        self._calls_back = False  # soon
        self._rests = False  # until a timer has run out
        self.closed = False

    def fileno(self) -> int:
        """The descriptor, -1 once closed."""
        return self._sock.fileno()

    # Sending

    def send_control(self, payload: bytes, fd: int | None = None) -> None:
        """Send a frame of the library's own; `fd` is duplicated. On a closed channel, nothing happens."""
        if not self.closed and self._wire.send(CONTROL, payload, -1 if fd is None else os.dup(fd), None) > 0:
            self._look_after()

    def send_message(
        self,
        message: object,
        handle: Handle | HasFileno | None,
        keep_open: bool,
        callback: Callback | None,
    ) -> bool:
        """Send a message of the user's; see `Worker.send`."""
        close = None if keep_open or handle is None else _closing(handle)
        try:
            payload = self._encode(message)
        except (TypeError, ValueError, OverflowError, RecursionError) as exception:
            raise TypeError(f"a message of type {type(message).__name__} cannot be encoded: {exception}") from exception
        if len(payload) > self.max_message_size:
            raise ValueError(
                f"the message has {len(payload)} bytes; settings.max_message_size allows {self.max_message_size}"
            )
        fd = -1
        if handle is not None:
            fd = handle if isinstance(handle, int) else handle.fileno()
            if is_channel(fd):
                raise ValueError("a shared listener cannot be sent: send one that was opened with exclusive=True")
            fd = os.dup(fd)
        status = self._wire.send(MESSAGE, payload, fd, callback)
        if status > 0:
            self._look_after()
        elif status < 0:
            error = ChannelClosedError("the channel is closed; check is_connected() before send()")
            if callback is None:
                raise error
            self._defer(lambda: callback(error))
            return False
        if close is not None:
            close()
        return self._wire.queued < HIGH_WATER_MARK

    def flush(self) -> None:
        """Write what waits, as much as the socket takes; called when the descriptor is writable."""
        if not self.closed and self._wire.flush():
            self._look_after()

    def _flush_rested(self) -> None:
        native.sleep(RETRY_S)
        self._rests = False
        self.flush()

    def _look_after(self) -> None:
        """Have the callbacks of frames that are done with called, and try again later when the system has no room."""
        if self._wire.ended and not self._calls_back:
            self._calls_back = True
            self._defer(self._call_back)
        if self._wire.rests and not self._rests:
            self._rests = True
            native.start_thread(self._flush_rested, "pycluster-retry")

    def _call_back(self) -> None:
        """In the handlers' thread. One that raises keeps none of the others waiting."""
        self._calls_back = False  # before the look: whoever adds one after it defers this again
        ended = self._wire.ended
        try:
            while ended:
                callback, exception = ended.popleft()
                callback(exception)
        finally:
            if ended:
                self._look_after()

    @property
    def backlogged(self) -> bool:
        """Whether something waits to be written."""
        return self._wire.queued > 0

    @property
    def unread(self) -> bool:
        """Whether more of our own frames wait to be written than a peer that reads them ever lets wait."""
        return self._wire.waiting_control > WAITING_CONTROL_MAX

    # Receiving

    @property
    def exhausted(self) -> bool:
        """Whether the last `receive` found nothing."""
        return self._wire.exhausted

    def decode_message(self, payload: bytes, fd: int | None) -> tuple[object, Handle | None]:
        """The user's message and handle in a frame.

        Raises:
          ProtocolError: the payload is not what the serialization in force writes.
        """
        try:
            message = self._decode(payload)
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as exception:  # TypeError: a map as a key
            if fd is not None:
                _cluster.discard(fd)
            raise ProtocolError(f"a message cannot be decoded: {exception}") from exception
        return message, None if fd is None else _as_handle(fd)

    def end_receiving(self) -> None:
        """Let nothing more be written to this end: `receive` gives what has been, and then raises EOFError.

        The peer's process may have ended and the channel be open still, in a process that it has left behind, which
        may write faster than we read.
        """
        if not self.closed:
            self._sock.shutdown(socket.SHUT_RD)

    # Handing on to the next image of the primary

    def export(self) -> tuple[bytes, list[int | None], list[tuple[bytes, bytes, int, int]]]:
        """What is half received and what waits to be sent; the descriptors in it are borrowed.

        Nothing is written any more, unless `thaw` is called: whoever takes this over would write it again.
        """
        return self._wire.export()

    def thaw(self) -> None:
        """Write again, when nobody has taken over what was exported."""
        if not self.closed and self._wire.thaw():
            self._look_after()

    def adopt(
        self, incoming: bytes, descriptors: list[int | None], outgoing: list[tuple[bytes, bytes, int, int]]
    ) -> None:
        """Go on where the exported channel has stopped. The callbacks of what waits are gone."""
        if self._wire.adopt(incoming, descriptors, outgoing) > 0:
            self._look_after()

    # Closing

    def close(self) -> None:
        """Close this end; frames that wait are failed. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._wire.close(ChannelClosedError("the channel was closed before the message was written"))
        self._look_after()
        # Wakes the lifeline, whose poll would keep the socket open (see the core).
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._sock.close()

    def abandon(self) -> None:
        """Close a forked child's copy, without a word to the peer."""
        self.closed = True
        self._wire.abandon()
        self._sock.close()


def close_handle(handle: Handle | None) -> None:
    """Close what came with a message, and wait for nothing."""
    if handle is not None:
        _cluster.discard(handle if isinstance(handle, int) else handle.detach())


def _closing(handle: Handle | HasFileno) -> Callable[[], object]:
    """What closes a handle.

    Raises:
      TypeError: nothing does.
    """
    if isinstance(handle, int):
        return functools.partial(native.close, handle)
    close: Callable[[], object] | None = getattr(handle, "close", None)
    if close is None:
        raise TypeError(f"{handle!r} has no close(), so it cannot be closed here: send it with keep_open=True")
    return close


def _as_handle(fd: int) -> Handle:
    """A socket for the descriptor of one, else the descriptor itself."""
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        with contextlib.suppress(OSError):  # one without an address, such as a socket's file opened with O_PATH
            return socket.socket(fileno=fd)
    return fd
