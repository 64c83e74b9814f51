"""Load: threads of clients that ask one request after the other until they are stopped, and what came of it.

What a client asks, and how, is a session: a generator that connects, asks, and yields each answer. Its thread begins it
anew when it is over.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterable
from typing import Generic, NamedTuple, TypeVar

from harness import connect, wait_until
from puppets import who_answers, worker_in

Answer = TypeVar("Answer")
Session = Callable[[], Generator[Answer, None, None]]


class Over(Exception):
    """A session raises it: there is nobody to be asked any more, and that is no failure. Its thread ends."""


class Answered(NamedTuple, Generic[Answer]):
    """One request that has been answered.

    Attributes:
      asked_at: by time.monotonic(); before the connection was made, if it was made for this.
      took_s: until the answer was there.
    """

    asked_at: float
    took_s: float
    answer: Answer


class Load(Generic[Answer]):
    """A context: as long as it lasts, each session runs in a thread of its own.

    Attributes:
      answered: all answers, in the order in which they came.
      failures: what the sessions have raised, OSError or AssertionError; each stands for one request.
    """

    def __init__(self, sessions: Iterable[Session[Answer]], pause_s: float = 0) -> None:
        """`pause_s`: between two sessions of a thread, where the load is to be there for long and not to be heavy."""
        self._pause_s = pause_s
        self.answered: list[Answered[Answer]] = []
        self.failures: list[Exception] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=[session]) for session in sessions]

    def _run(self, session: Session[Answer]) -> None:
        while not self._stop.is_set():
            try:
                with contextlib.closing(session()) as answers:
                    self._note(answers)
            except Over:
                return
            except (OSError, AssertionError) as failure:
                self.failures.append(failure)
            if self._pause_s:
                self._stop.wait(self._pause_s)

    def _note(self, answers: Generator[Answer, None, None]) -> None:
        asked_at = time.monotonic()
        for answer in answers:
            now = time.monotonic()
            self.answered.append(Answered(asked_at, now - asked_at, answer))
            if self._stop.is_set():
                return
            asked_at = time.monotonic()

    @property
    def answers(self) -> list[Answer]:
        """The answers alone."""
        return [answered.answer for answered in list(self.answered)]

    @property
    def longest_s(self) -> float:
        """How long the slowest answer took."""
        return max(answered.took_s for answered in list(self.answered))

    def asked_from_now_on(self) -> Callable[[], list[Answer]]:
        """A function that gives the answers to what was asked after this call."""
        now, before = time.monotonic(), len(self.answered)
        return lambda: [answered.answer for answered in self.answered[before:] if answered.asked_at > now]

    def wait_for(self, count: int) -> bool:
        """Wait for so many answers more, or a failure. Returns whether they came."""
        wanted = len(self.answered) + count
        return wait_until(lambda: len(self.answered) >= wanted or self.failures) and not self.failures

    def wait_for_answers_of(self, *who: Answer) -> bool:
        """Wait until each of them has answered from now on, or a request has failed. Returns whether they have."""
        before = len(self.answered)

        def have_answered() -> bool:
            return {*who} <= {answered.answer for answered in self.answered[before:]}

        return wait_until(lambda: have_answered() or self.failures) and not self.failures

    def __enter__(self) -> "Load[Answer]":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def once(ask: Callable[[], Answer]) -> Session[Answer]:
    """A session of one request."""

    def session() -> Generator[Answer, None, None]:
        yield ask()

    return session


def lines(port: int, requests: int, *, refusable: bool = False) -> Session[int]:
    """A session of so many lines on one connection, each of which a worker answers with its name: yields its id.

    Args:
      refusable: whether it is `Over` when the connection cannot be made.
    """

    def session() -> Generator[int, None, None]:
        try:
            client = connect(port)
        except ConnectionError as error:
            if refusable:
                raise Over from error
            raise
        with client, client.makefile("rb") as answers:
            for _ in range(requests):
                client.sendall(b"hello\n")
                yield worker_in(answers.readline())

    return session


def connections(port: int, threads: int) -> Load[int]:
    """Clients that make a connection per request, as `who_answers` does; the answers are workers' ids."""
    return Load([once(lambda: who_answers(port))] * threads)


def mixed(port: int, threads: int, requests: int = 10, *, refusable: bool = False) -> Load[int]:
    """Clients that ask lines: every other one once per connection, the others so often."""
    ways = [lines(port, 1, refusable=refusable), lines(port, requests, refusable=refusable)]
    return Load([ways[number % 2] for number in range(threads)])
