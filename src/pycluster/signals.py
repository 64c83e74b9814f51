"""Signals: by name and number, and what they mean to the primary while `run()` or `serve()` is active."""

import _signal  # type: ignore[import-not-found]
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from . import native


@contextlib.contextmanager
def handling(
    answers: Mapping[int, Callable[[], object]], defer: Callable[[Callable[[], object]], object], wakeup_fd: int
) -> Iterator[None]:
    """Have each of these signals answered by a function, deferred; put the previous handlers back afterwards.

    Every signal is written to `wakeup_fd`, unless somebody else has asked for them: one that comes after Python has
    last looked, and before the wait for events begins, would not end that wait.

    Python runs the handler in the main thread, between two bytecodes of whatever runs there. Outside of the main
    thread, where Python takes no handlers, nothing is changed, nor in a run within a run, where they are answered.
    """
    if _ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    somebody_elses = signal.set_wakeup_fd(wakeup_fd, warn_on_full_buffer=False)
    if somebody_elses != -1:
        signal.set_wakeup_fd(somebody_elses)
    for number in answers:
        # Noted before it is replaced: another thread may fork in between.
        _previous[number] = signal.getsignal(number)
        _ours[number] = lambda number, frame: defer(answers[number])
        signal.signal(number, _ours[number])
    try:
        yield
    finally:
        _leave_wakeup(wakeup_fd)
        for number in list(_ours):  # none in a forked child whose script ends in here
            _put_back(number)
        _forget()


def abandon(wakeup_fd: int) -> None:
    """In a forked child, whose only thread is its main thread: answer no signal any more.

    A handler that the user has installed since, in the place of one of ours, stays.
    """
    _leave_wakeup(wakeup_fd)
    for number, ours in _ours.items():
        if signal.getsignal(number) is ours:
            _put_back(number)
    _forget()


def hold_back() -> None:
    """Before a fork: let no signal that is answered here reach the child before it has called `abandon`.

    The answer would be lost: it is the primary's loop that gives it. And so would be the first SIGTERM of a process
    that is terminated as soon as it has been started.
    """
    if _ours:
        # In two steps: the second one may raise what a handler of the user's raises, with the signals blocked.
        _masks[native.get_ident()] = _signal.pthread_sigmask(signal.SIG_BLOCK, [])
        _signal.pthread_sigmask(signal.SIG_BLOCK, list(_ours))


def let_in() -> None:
    """After a fork, in both processes: undo `hold_back`."""
    mask = _masks.pop(native.get_ident(), None)
    if mask is not None:
        _signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# By number, while `handling` is active: what was there before, and what is there now.
_previous: dict[int, Any] = {}
_ours: dict[int, Callable[[int, object], object]] = {}
# What threads that fork just now had blocked before, by their ids. Plain numbers: where a worker is forked all signals
# are blocked, and signal's own function makes an enum of each.
_masks: dict[int, set[int]] = {}


def _put_back(number: int) -> None:
    # None: it was not Python that installed it, and so Python cannot put it back
    previous = _previous[number]
    signal.signal(number, signal.SIG_DFL if previous is None else previous)


def _forget() -> None:
    _ours.clear()
    _previous.clear()


def _leave_wakeup(wakeup_fd: int) -> None:
    """Have signals written there no more. Main thread, or a forked child's only one."""
    current = signal.set_wakeup_fd(-1)
    if current != wakeup_fd:
        signal.set_wakeup_fd(current)


def as_signal(value: int | str) -> signal.Signals | int:
    """A signal by number, or by name as Node.js takes it ("SIGTERM"). A real-time signal without a name is an int.

    Raises:
      ValueError: there is no such signal.
    """
    with contextlib.suppress(KeyError, ValueError):
        return signal.Signals[value] if isinstance(value, str) else signal.Signals(value)
    if isinstance(value, int) and value in signal.valid_signals():
        return value
    raise ValueError(f"{value!r} is no signal; use signal.SIGTERM, or its name")


def end_in_words(code: int | None, number: int | None) -> str:
    """How a process has ended, by its exit status or by the signal that ended it."""
    return f"exited with status {code}" if number is None else f"was killed by {name_of(number)}"


def name_of(number: int) -> str:
    """The signal as people call it; a real-time signal without a name by its number."""
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
