"""The rights of a worker with a user or group of its own: it takes them, and the primary acts on files with them.

The primary binds the paths that workers bind, and may have more rights than they: it must not make, move or remove a
file where the worker itself could not. So it does all of that in a short-lived thread that has the worker's rights to
files: what the thread opens, makes and removes, the kernel checks as the worker's.
Ports are another thing: one that only root may bind is what a primary with more rights is for.
"""

import errno
import os
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from . import _cluster, native
from .settings import Settings

Result = TypeVar("Result")


class Rights(NamedTuple):
    """To files. `groups`: the supplementary ones, None for the primary's."""

    uid: int
    gid: int
    groups: tuple[int, ...] | None


def rights_of(settings: Settings) -> Rights | None:
    """What a worker that is forked now will have; None for the primary's own."""
    if settings.uid is None and settings.gid is None:
        return None
    groups = groups_of(settings)
    return Rights(
        os.geteuid() if settings.uid is None else settings.uid,
        os.getegid() if settings.gid is None else settings.gid,
        None if groups is None else tuple(groups),
    )


def groups_of(settings: Settings) -> list[int] | None:
    """The supplementary groups of a worker with a user or group of its own; None to keep the primary's.

    The primary's would give it rights that its user has not. Only root may change them, and has any to lose by it.
    """
    if (settings.uid is None and settings.gid is None) or os.geteuid() != 0:
        return None
    return [] if settings.gid is None else [settings.gid]


def drop_rights(settings: Settings) -> None:
    """Change to the worker's user and group, for good.

    Raises:
      PermissionError: only root may.
    """
    groups = groups_of(settings)
    if groups is not None:
        os.setgroups(groups)
    if settings.gid is not None:
        os.setgid(settings.gid)
    if settings.uid is not None:
        os.setuid(settings.uid)


def act_with(rights: Rights | None, act: Callable[[], Result]) -> Result:
    """Call a function, which may do what somebody with these rights to files may, and wait for it.

    Returns, raises: what the function does.

    Raises:
      OSError: EAGAIN: there can be no other thread. EPERM: this process may not take these rights.
    """
    if rights is None:
        return act()
    results: list[Result] = []
    failures: list[BaseException] = []
    done = native.Event()

    def act_and_end() -> None:
        try:
            _cluster.limit_rights(*rights)
            results.append(act())
        except BaseException as exception:
            failures.append(exception)
        finally:
            done.set()

    try:
        native.start_new_thread(act_and_end, ())
    except RuntimeError:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
    done.wait()
    if failures:
        raise failures[0]
    return results[0]
