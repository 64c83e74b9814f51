"""Signals: by name and number, and what they mean to the primary while `run()` or `serve()` is active."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping


@contextlib.contextmanager
def handling(
    answers: Mapping[int, Callable[[], object]], defer: Callable[[Callable[[], object]], object], wakeup_fd: int
) -> Iterator[None]:
    """Have each of these signals answered by a function, deferred; put the previous handlers back afterwards.

    Every signal is written to `wakeup_fd`, unless somebody else has asked for them: one that comes after Python has
    last looked, and before the wait for events begins, would not end that wait.

    Python runs the handler in the main thread, between two bytecodes of whatever runs there. Outside of the main
    thread, where Python takes no handlers, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    somebody_elses = signal.set_wakeup_fd(wakeup_fd, warn_on_full_buffer=False)
    if somebody_elses != -1:
        signal.set_wakeup_fd(somebody_elses)
    previous = {number: signal.signal(number, lambda number, frame: defer(answers[number])) for number in answers}
    try:
        yield
    finally:
        leave_wakeup(wakeup_fd)
        for number, handler in previous.items():
            # None: it was not Python that installed it, and so Python cannot put it back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def leave_wakeup(wakeup_fd: int) -> None:
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
