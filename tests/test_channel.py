"""The control channel over a socketpair in this process: frames, descriptors, backpressure, and what is no frame."""

import array
import contextlib
import datetime
import decimal
import itertools
import os
import resource
import select
import socket
import struct
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import Programs
from pycluster import _cluster
from pycluster.channel import CONTROL, HIGH_WATER_MARK, MESSAGE, Channel
from pycluster.errors import ChannelClosedError, ClusterError, ProtocolError

HEADER = struct.Struct("<IBBH")
MAX_MESSAGE_SIZE = 1 << 20
# Of the core: the longest frame of control, and what one read brings at most as long as no larger frame is coming.
CONTROL_LIMIT = 64 * 1024
READ_SIZE = 256 * 1024


class Frame(NamedTuple):
    """A frame as the channel gives it."""

    kind: int
    payload: bytes
    fd: int | None


class End:
    """A channel with the loop that its owner would have: an epoll and a list of deferred functions."""

    def __init__(
        self,
        sock: socket.socket,
        serialization: Literal["msgpack", "json"] = "msgpack",
        max_message_size: int = MAX_MESSAGE_SIZE,
    ) -> None:
        self.epoll = select.epoll()
        self.deferred: list[Callable[[], object]] = []
        self.channel = Channel(
            sock,
            _cluster.Poll(self.epoll.fileno()),
            None,
            serialization=serialization,
            max_message_size=max_message_size,
            defer=self.deferred.append,
        )

    def close(self) -> None:
        self.channel.close()
        self.epoll.close()

    def run_deferred(self) -> None:
        while self.deferred:
            self.deferred.pop(0)()

    def events(self) -> int:
        return sum(event for _, event in self.epoll.poll(0))

    def receive(self) -> list[Frame]:
        """All frames that can be had now."""
        frames = list(self.read())
        while not self.channel.exhausted:
            frames += self.read()
        return frames

    def read(self) -> Iterator[Frame]:
        """Read once."""
        return map(Frame._make, self.channel.receive())

    def receive_to_the_end(self) -> list[Frame]:
        """All frames up to the end of the stream."""
        frames: list[Frame] = []
        try:
            while True:
                for frame in self.read():
                    frames.append(frame)
        except EOFError:
            return frames

    def messages(self) -> list[tuple[object, Any]]:
        return [self.channel.decode_message(frame.payload, frame.fd) for frame in self.receive()]


@contextlib.contextmanager
def channels(**options: Any) -> Iterator[tuple[End, End]]:
    """Two channels that talk to each other."""
    left, right = (End(sock, **options) for sock in socket.socketpair())
    with contextlib.closing(left), contextlib.closing(right):
        yield left, right


@contextlib.contextmanager
def raw_and_channel(**options: Any) -> Iterator[tuple[socket.socket, End]]:
    """A plain socket, to say anything with, and a channel that hears it."""
    raw, sock = socket.socketpair()
    end = End(sock, **options)
    with raw, contextlib.closing(end):
        yield raw, end


def open_descriptors() -> set[str]:
    return {f"{name} {os.readlink(f'/proc/self/fd/{name}')}" for name in os.listdir("/proc/self/fd") if is_open(name)}


def is_open(name: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{name}")  # the listing's own descriptor is closed by now


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before


@contextlib.contextmanager
def no_descriptor_to_be_had() -> Iterator[None]:
    """Lower the limit to the lowest free number, so that whatever would open one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def marked_descriptor(mark: str) -> int:
    """A descriptor that is told from others by its name."""
    return os.memfd_create(mark)


def mark_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}").removeprefix("/memfd:").removesuffix(" (deleted)")


def take_mark(fd: int | None) -> str | None:
    if fd is None:
        return None
    mark = mark_of(fd)
    os.close(fd)
    return mark


def frame_bytes(kind: int, payload: bytes, descriptors: int = 0, reserved: int = 0) -> bytes:
    return HEADER.pack(len(payload), kind, descriptors, reserved) + payload


class Sent(NamedTuple):
    kind: int
    payload: bytes
    with_fd: bool


payloads = st.binary(max_size=40) | st.integers(0, 8000).map(lambda size: bytes(i % 251 for i in range(size)))
sent_frames = st.lists(st.builds(Sent, st.sampled_from([CONTROL, MESSAGE]), payloads, st.booleans()), max_size=8)
# The autouse fixture compares before the first and after the last example, which is what it is for.
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

# ---- Frames


@relaxed
@given(frames=sent_frames, data=st.data())
def test_frames_come_out_as_soon_as_their_last_byte_has_come_however_they_are_split_and_joined(
    frames: list[Sent], data: st.DataObject
) -> None:
    stream = b""
    starts = []
    ends = []
    for frame in frames:
        starts.append(len(stream))
        stream += frame_bytes(frame.kind, frame.payload, int(frame.with_fd))
        ends.append(len(stream))
    cuts = data.draw(st.sets(st.integers(1, max(1, len(stream) - 1)), max_size=10)) if stream else set()
    got = 0
    with raw_and_channel() as (raw, end):
        for left, right in itertools.pairwise(sorted({0, *cuts, len(stream)})):
            # A descriptor goes with the first byte of its frame, in a sendmsg of its own.
            marked = [at for i, at in enumerate(starts) if frames[i].with_fd and left <= at < right]
            for begin, end_of_part in itertools.pairwise(sorted({left, *marked, right})):
                fds = [marked_descriptor(str(starts.index(begin)))] if begin in marked else []
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                assert raw.sendmsg([stream[begin:end_of_part]], rights) == end_of_part - begin
                for fd in fds:
                    os.close(fd)
            for received in end.receive():
                assert (received.kind, received.payload) == frames[got][:2]
                assert take_mark(received.fd) == (str(got) if frames[got].with_fd else None)
                got += 1
            assert got == sum(at <= right for at in ends)
    assert got == len(frames)


@relaxed
@given(frames=sent_frames, small=st.booleans(), data=st.data())
def test_frames_survive_partial_writes_in_order_with_their_descriptors(
    frames: list[Sent], small: bool, data: st.DataObject
) -> None:
    got: list[Sent] = []

    def read(end: End) -> None:
        for frame in end.read():
            mark = take_mark(frame.fd)
            assert mark in (None, str(len(got)))
            got.append(Sent(frame.kind, frame.payload, mark is not None))

    with channels() as (left, right):
        if small:
            left.channel._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel makes it its minimum
        for i, frame in enumerate(frames):
            fd = marked_descriptor(str(i)) if frame.with_fd else -1
            assert not left.channel._wire.send(frame.kind, frame.payload, fd, None)
            if data.draw(st.booleans()):
                read(right)
        while len(got) < len(frames):
            read(right)
            assert bool(left.events() & select.EPOLLOUT) <= left.channel.backlogged
            left.channel.flush()
        assert not left.channel.backlogged
        assert left.events() == 0
    assert got == frames


def test_an_empty_frame_is_a_frame() -> None:
    with channels() as (left, right):
        left.channel.send_control(b"")
        assert right.receive() == [Frame(CONTROL, b"", None)]


def test_a_frame_may_take_many_reads() -> None:
    payload = os.urandom(3 * READ_SIZE)
    with channels() as (left, right):
        left.channel._wire.send(MESSAGE, payload, -1, None)
        assert left.channel.backlogged
        frames: list[Frame] = []
        while not frames:
            frames = right.receive()
            left.channel.flush()
        assert frames == [Frame(MESSAGE, payload, None)]


def test_reading_where_nothing_waits_yields_nothing() -> None:
    with channels() as (_, right):
        assert not right.channel.exhausted
        assert list(right.channel.receive()) == []
        assert right.channel.exhausted


def test_a_handler_may_read_on_while_its_frame_is_handled() -> None:
    seen = []
    with channels() as (left, right):
        for payload in (b"1", b"2", b"3"):
            left.channel.send_control(payload)
        for frame in right.read():
            seen.append(frame.payload)
            left.channel.send_control(b"more" + frame.payload)
            seen += [inner.payload for inner in right.read()]
            if len(seen) > 4:
                break
    assert seen[:4] == [b"1", b"2", b"3", b"more1"]


# ---- What is no frame


def hears_no_frame(*parts: bytes, fds: int = 0, **options: Any) -> str:
    """What the channel says of these bytes."""
    with raw_and_channel(**options) as (raw, end):
        marks = [marked_descriptor(str(i)) for i in range(fds)]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", marks))] if marks else []
        raw.sendmsg(parts, rights)
        for fd in marks:
            os.close(fd)
        try:
            while True:
                for frame in end.read():
                    take_mark(frame.fd)
                assert not end.channel.exhausted, "this was taken for a frame"
        except ProtocolError as exception:
            return str(exception)


@relaxed
@given(
    kind=st.integers(0, 255), descriptors=st.integers(0, 255), reserved=st.integers(0, 65535), length=st.integers(0, 99)
)
def test_a_header_is_valid_or_a_protocol_error(kind: int, descriptors: int, reserved: int, length: int) -> None:
    header = HEADER.pack(length, kind, descriptors, reserved)
    if kind in (CONTROL, MESSAGE) and descriptors <= 1 and not reserved:
        with raw_and_channel() as (raw, end):
            raw.sendall(header)
            if length or descriptors:
                raw.sendall(b"x" * (length - 1))
                if descriptors and not length:
                    return
                assert end.receive() == []
            else:
                assert end.receive() == [Frame(kind, b"", None)]
    else:
        assert "no frame starts with" in hears_no_frame(header)


@pytest.mark.parametrize(("kind", "limit"), [(CONTROL, CONTROL_LIMIT), (MESSAGE, 1000)])
def test_the_length_of_a_frame_is_bounded_before_its_payload_comes(kind: int, limit: int) -> None:
    said = hears_no_frame(HEADER.pack(limit + 1, kind, 0, 0), max_message_size=1000)
    assert str(limit) in said
    with raw_and_channel(max_message_size=1000) as (raw, end):
        raw.sendall(frame_bytes(kind, b"x" * limit))
        assert [len(frame.payload) for frame in end.receive()] == [limit]


def test_an_announced_descriptor_that_does_not_come_is_a_protocol_error() -> None:
    assert "none came" in hears_no_frame(frame_bytes(CONTROL, b"x", descriptors=1))


def test_a_descriptor_that_is_not_announced_is_a_protocol_error() -> None:
    assert "more descriptors" in hears_no_frame(frame_bytes(CONTROL, b"x"), fds=1)
    assert "more descriptors" in hears_no_frame(frame_bytes(CONTROL, b"x", descriptors=1), fds=2)


def test_frames_before_the_rubbish_are_heard() -> None:
    with raw_and_channel() as (raw, end):
        raw.sendall(frame_bytes(CONTROL, b"a") + frame_bytes(MESSAGE, b"b") + b"\xff" * 8)
        heard = end.read()
        assert next(heard).payload == b"a"
        assert next(heard).payload == b"b"
        with pytest.raises(ProtocolError):
            next(heard)


@relaxed
@given(st.lists(st.binary(min_size=1, max_size=30), max_size=5), st.integers(0, 3))
def test_rubbish_makes_nothing_but_protocol_errors_and_leaves_no_descriptor(parts: list[bytes], fds: int) -> None:
    with raw_and_channel() as (raw, end):
        try:
            for part in parts:
                marks = [marked_descriptor("x") for _ in range(fds)]
                raw.sendmsg([part], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", marks))])
                for fd in marks:
                    os.close(fd)
                for frame in end.receive():
                    take_mark(frame.fd)
            raw.close()
            end.receive()
        except ProtocolError:
            pass
        except EOFError:
            assert raw.fileno() < 0


def test_descriptors_that_no_frame_announces_do_not_pile_up() -> None:
    with raw_and_channel() as (raw, end):
        fd = marked_descriptor("unannounced")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd] * 10))]
        raw.sendall(HEADER.pack(1000, MESSAGE, 1, 0))
        with contextlib.suppress(ProtocolError):
            for _ in range(20):
                raw.sendmsg([b"x"], rights)
                assert end.receive() == []
        held = len(end.channel._wire.descriptors)
        os.close(fd)
    assert held <= 10


@relaxed
@given(st.binary(max_size=60), st.sampled_from(["msgpack", "json"]))
def test_a_payload_is_a_message_or_a_protocol_error(payload: bytes, serialization: str) -> None:
    with raw_and_channel(serialization=serialization) as (_, end):
        fd = marked_descriptor("handle")
        try:
            _, handle = end.channel.decode_message(payload, fd)
        except ProtocolError:
            return  # with the descriptor closed, as the fixture finds
        assert handle == fd
        os.close(fd)


@pytest.mark.parametrize(
    ("serialization", "payload"),
    [
        ("msgpack", b"\x91" * 20000 + b"\xc0"),
        ("json", b"[" * 20000),
        ("msgpack", b"\xa3\xff\xff\xff"),
        ("json", b'"\xff"'),
    ],
    ids=["a nest", "a nest in JSON", "no text", "no text in JSON"],
)
def test_a_nest_and_text_that_is_no_utf_8_are_protocol_errors_and_leave_no_descriptor(
    serialization: Literal["msgpack", "json"], payload: bytes
) -> None:
    with raw_and_channel(serialization=serialization) as (_, end):
        fd = marked_descriptor("handle")
        with pytest.raises(ProtocolError):
            end.channel.decode_message(payload, fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


# ---- Descriptors that do not fit


def test_a_descriptor_that_does_not_fit_is_missing_and_the_channel_goes_on() -> None:
    with channels() as (left, right):
        left.channel.send_control(b"first", fd=left.channel.fileno())
        left.channel.send_control(b"second")
        with no_descriptor_to_be_had():
            assert right.receive() == [Frame(CONTROL, b"first", None), Frame(CONTROL, b"second", None)]
        left.channel.send_control(b"third", fd=left.channel.fileno())
        (third,) = right.receive()
        assert third.fd is not None
        os.close(third.fd)


def test_a_descriptor_that_does_not_fit_is_missing_from_a_frame_of_many_reads_too() -> None:
    payload = bytes(2 * READ_SIZE)
    frames: list[Frame] = []
    with channels() as (left, right):
        fd = marked_descriptor("lost")
        left.channel._wire.send(MESSAGE, payload, fd, None)
        with no_descriptor_to_be_had():
            while left.channel.backlogged:
                frames += right.receive()
                left.channel.flush()
            frames += right.receive()
        assert frames == [Frame(MESSAGE, payload, None)]


def test_a_lost_descriptor_is_not_replaced_by_the_next_one() -> None:
    got: list[str | None] = []
    with channels() as (left, right):
        left.channel._wire.send(MESSAGE, bytes(2 * READ_SIZE), marked_descriptor("first"), None)
        left.channel._wire.send(MESSAGE, b"", marked_descriptor("second"), None)
        with no_descriptor_to_be_had():
            got += [take_mark(frame.fd) for frame in right.read()]
        while len(got) < 2:
            got += [take_mark(frame.fd) for frame in right.receive()]
            left.channel.flush()
    assert got == [None, "second"]


def test_messages_wait_when_more_descriptors_are_in_flight_than_the_system_allows(cluster_program: Programs) -> None:
    facts = cluster_program("channel_in_flight").wait_for("facts")
    assert facts["errors"] == []
    assert facts["in_order"]
    assert facts["with_handle"] == facts["sent"] > 64


# ---- Messages

MESSAGES = [None, True, 0, -1, 2**63, 1.5, "", "grüße", [], [1, [2, [3]]], {}, {"a": {"b": None}}]


@pytest.mark.parametrize("serialization", ["msgpack", "json"])
@pytest.mark.parametrize("message", MESSAGES)
def test_messages_arrive_as_they_were_sent(message: object, serialization: str) -> None:
    with channels(serialization=serialization) as (left, right):
        assert left.channel.send_message(message, None, False, None)
        assert right.messages() == [(message, None)]


def test_what_has_no_type_on_the_other_side_arrives_as_what_it_is_made_of() -> None:
    class Point(msgspec.Struct):
        x: int

    with channels() as (left, right):
        when = datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)
        number = uuid.UUID(int=1)
        for message in (b"\x00\xff", when, number, decimal.Decimal("1.50"), Point(1), (1, 2), {1}):
            left.channel.send_message(message, None, False, None)
        assert [message for message, _ in right.messages()] == [
            b"\x00\xff",
            when,
            str(number),
            "1.50",
            {"x": 1},
            [1, 2],
            [1],
        ]


def recursive() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    "message",
    [object(), 2**65, recursive(), {"a": [lambda: None]}],
    ids=["an object", "a large number", "a list in itself", "a function"],
)
def test_what_cannot_be_encoded_is_a_type_error_and_nothing_is_sent(message: object) -> None:
    with channels() as (left, right):
        with left.channel._sock.dup() as handle:
            with pytest.raises(TypeError, match="cannot be encoded"):
                left.channel.send_message(message, handle, False, None)
            assert handle.fileno() >= 0  # a failed send leaves the handle to the sender
        assert right.receive() == []


def test_a_message_that_is_too_long_is_a_value_error_and_nothing_is_sent() -> None:
    with channels(max_message_size=100) as (left, right):
        left.channel.send_message(bytes(98), None, False, None)
        with pytest.raises(ValueError, match=r"101 bytes.*allows 100"):
            left.channel.send_message(bytes(99), None, False, None)
        assert right.messages() == [(bytes(98), None)]


def test_a_socket_arrives_as_a_socket_and_another_descriptor_as_a_number() -> None:
    with channels() as (left, right), socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        left.channel.send_message("socket", server, True, None)
        left.channel.send_message("socket by number", server.fileno(), True, None)
        left.channel.send_message("file", marked_descriptor("file"), False, None)
        (_, first), (_, second), (_, third) = right.messages()
        for sock in (first, second):
            assert isinstance(sock, socket.socket)
            assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM)
            assert sock.getsockname() == address
            assert not sock.get_inheritable()
            sock.close()
        assert isinstance(third, int)
        assert not os.get_inheritable(third)
        assert take_mark(third) == "file"


@pytest.mark.parametrize("keep_open", [True, False])
def test_a_handle_is_closed_once_sent_unless_it_is_kept(keep_open: bool) -> None:
    with channels() as (left, right):
        sock = left.channel._sock.dup()
        file = open(os.devnull, "rb")  # noqa: SIM115
        number = marked_descriptor("number")
        for handle in (sock, file, number):
            left.channel.send_message(None, handle, keep_open, None)
        assert (sock.fileno() >= 0) == (not file.closed) == keep_open
        if keep_open:
            sock.close()
            file.close()
            os.close(number)
        else:
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(number)
        for _, got in right.messages():
            if isinstance(got, socket.socket):
                got.close()
            else:
                os.close(got)


def test_a_closed_handle_is_refused_and_nothing_is_sent() -> None:
    with channels() as (left, right):
        sock = left.channel._sock.dup()
        sock.close()
        with pytest.raises(OSError, match="Bad file"):
            left.channel.send_message("x", sock, False, None)
        assert right.receive() == []


# ---- Backpressure, callbacks, threads


def test_send_says_false_past_the_high_water_mark_and_drops_nothing() -> None:
    with channels() as (left, right):
        refusals = 0
        count = 0
        while refusals < 20:
            ready = left.channel.send_message(bytes(32 * 1024), None, False, None)
            assert ready == (left.channel._wire.queued < HIGH_WATER_MARK)
            count += 1
            refusals += not ready
        got = 0
        while left.channel.backlogged:
            got += len(right.messages())
            left.channel.flush()
        got += len(right.messages())
        assert got == count
        assert left.channel._wire.queued == 0
        assert left.channel.send_message(None, None, False, None)


def test_callbacks_run_in_order_once_their_message_is_written() -> None:
    written: list[int] = []
    errors: list[BaseException | None] = []
    with channels() as (left, right):
        left.channel._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)

        def note(i: int) -> Callable[[BaseException | None], object]:
            def callback(error: BaseException | None) -> None:
                written.append(i)
                errors.append(error)

            return callback

        for i in range(30):
            left.channel.send_message(bytes(1000), None, False, note(i))
        left.run_deferred()
        assert 0 < len(written) < 30
        while left.channel.backlogged:
            right.receive()
            left.channel.flush()
            left.run_deferred()
        assert written == list(range(30))
        assert errors == [None] * 30


def test_closing_fails_what_waits_and_closes_its_descriptors() -> None:
    errors: list[BaseException | None] = []
    with channels() as (left, right):
        for _ in range(30):
            left.channel.send_message(bytes(30000), marked_descriptor("waits"), False, errors.append)
        assert left.channel.backlogged
        left.channel.close()
        left.run_deferred()
        failed = [error for error in errors if error is not None]
        assert 0 < len(failed) < 30
        assert errors[-len(failed) :] == failed
        assert all(isinstance(error, ChannelClosedError) for error in failed)
        assert {take_mark(frame.fd) for frame in right.receive_to_the_end()} == {"waits"}


def test_closing_twice_is_closing_once() -> None:
    with channels() as (left, _):
        left.channel.close()
        left.channel.close()
        assert left.channel.closed
        assert left.channel.fileno() == -1


def test_sending_on_a_closed_channel_raises_or_tells_the_callback_later() -> None:
    errors: list[BaseException | None] = []
    with channels() as (left, _):
        left.channel.close()
        with pytest.raises(ChannelClosedError) as raised:
            left.channel.send_message("x", None, False, None)
        assert isinstance(raised.value, ClusterError)
        with open(os.devnull, "rb") as file:
            assert not left.channel.send_message("x", file, False, errors.append)
            assert not file.closed
        assert errors == []
        left.run_deferred()
        assert [type(error) for error in errors] == [ChannelClosedError]
        left.channel.send_control(b"x", fd=0)  # says nothing


def test_what_the_peer_said_before_it_closed_is_heard() -> None:
    with channels() as (left, right):
        right.channel.send_control(b"unread")
        left.channel.send_control(b"a")
        left.channel.send_control(b"b", fd=left.channel.fileno())
        left.channel.close()
        a, b = right.receive_to_the_end()
        assert (a.payload, b.payload) == (b"a", b"b")
        assert b.fd is not None
        os.close(b.fd)


def test_half_a_frame_before_the_end_is_the_end() -> None:
    with raw_and_channel() as (raw, end):
        raw.sendall(frame_bytes(CONTROL, b"whole") + frame_bytes(CONTROL, b"half")[:-1])
        raw.close()
        assert [frame.payload for frame in end.read()] == [b"whole"]
        with pytest.raises(EOFError):
            list(end.channel.receive())


def test_a_vanished_peer_fails_the_callbacks_and_raises_nothing_at_the_sender() -> None:
    errors: list[BaseException | None] = []
    with channels() as (left, right):
        right.channel.close()
        left.channel.send_message("x", marked_descriptor("handle"), False, errors.append)
        left.run_deferred()
        assert [type(error) for error in errors] == [BrokenPipeError]
        with pytest.raises(EOFError):
            list(left.channel.receive())


def test_threads_may_send_at_once_and_each_stays_in_order() -> None:
    count, threads = 200, 8
    got: list[list[int]] = [[] for _ in range(threads)]
    with channels() as (left, right):

        def send(thread: int) -> None:
            for i in range(count):
                left.channel.send_message([thread, i, "x" * (i * 7 % 500)], None, False, None)

        senders = [threading.Thread(target=send, args=(i,)) for i in range(threads)]
        for sender in senders:
            sender.start()
        while sum(map(len, got)) < count * threads:
            left.channel.flush()
            for message, _ in right.messages():
                assert isinstance(message, list)
                thread, i, text = message
                assert len(text) == i * 7 % 500
                got[thread].append(i)
        for sender in senders:
            sender.join()
    assert got == [list(range(count))] * threads


def test_closing_a_descriptor_that_came_along_stops_the_lingering_of_connections_only() -> None:
    linger = struct.Struct("ii")
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        socket.socket() as unconnected,
    ):
        for sock, lingers in ((client, 0), (server, 1), (unconnected, 1)):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger.pack(1, 5))
            _cluster.discard(os.dup(sock.fileno()))
            assert linger.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger.size))[0] == lingers
    _cluster.discard(-1)


def test_what_is_exported_is_written_by_nobody_else() -> None:
    with channels() as (left, right):
        sent = 0
        while not left.channel.backlogged:
            left.channel.send_message("x" * 50_000, None, False, None)
            sent += 1
        _, _, outgoing = left.channel.export()
        arrived = len(right.messages())
        assert arrived < sent
        for _ in range(5):
            left.channel.send_message("late", None, False, None)
        left.channel.flush()
        assert right.messages() == []
        assert len(outgoing) >= sent - arrived
        left.channel.thaw()
        messages: list[object] = []
        while len(messages) < sent - arrived + 5:
            messages += [message for message, _ in right.messages()]
            left.channel.flush()
        assert messages == ["x" * 50_000] * (sent - arrived) + ["late"] * 5
