"""What a primary with more rights than its workers does to files on their behalf: what they could do themselves."""

import errno
import os
import pathlib
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator

import msgspec
import pytest

from harness import wait_until
from puppets import Puppets, Start, who_answers_at
from pycluster.rights import Rights
from pycluster.socketfile import Exported, SocketFile

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root may run a worker as another user")

WORKER = 65534
RR_AND_NONE = ["rr", "none"]


@pytest.fixture
def roots() -> Iterator[pathlib.Path]:
    """A directory that all may look into, and only root may change."""
    with tempfile.TemporaryDirectory(prefix="pc") as name:
        os.chmod(name, 0o755)
        yield pathlib.Path(name)


@pytest.fixture
def workers(roots: pathlib.Path) -> pathlib.Path:
    """A directory of the workers' user."""
    directory = roots / "theirs"
    directory.mkdir()
    os.chown(directory, WORKER, WORKER)
    return directory


@pytest.fixture
def limited(start: Start) -> Callable[..., Puppets]:
    """Start a cluster with two workers of a user and a group of their own."""
    return lambda policy="rr", **settings: start(policy=policy, **{"uid": WORKER, "gid": WORKER, **settings})


def error_of_listen(cluster: Puppets, path: pathlib.Path, how: str = "socket") -> int | None:
    try:
        cluster.do(1, "listen", path=str(path), how=how)
    except OSError as exception:
        return exception.errno
    return None


def leave_stale(path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_workers_share_a_path_where_their_user_may_make_one_and_the_file_is_theirs(
    limited: Callable[..., Puppets], workers: pathlib.Path, policy: str
) -> None:
    cluster = limited(policy)
    path = workers / "socket"
    for worker in (1, 2):
        cluster.do(worker, "listen", path=str(path))
        cluster.do(worker, "serve_in_a_thread")
    assert all((file.lstat().st_uid, file.lstat().st_gid) == (WORKER, WORKER) for file in workers.iterdir())
    path.unlink()
    cluster.do(1, "close")
    assert wait_until(path.exists)  # it has been put back
    assert who_answers_at(str(path)) == 2
    cluster.do(2, "close")
    assert wait_until(lambda: not os.listdir(workers))


@pytest.mark.parametrize("umask", [0o007, 0o177, 0])
def test_the_file_of_workers_with_a_user_has_the_mode_that_their_umask_gives_it(
    limited: Callable[..., Puppets], workers: pathlib.Path, umask: int
) -> None:
    cluster = limited()
    cluster.do(1, "listen", path=str(workers / "socket"), umask=umask)
    status = (workers / "socket").lstat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (WORKER, 0o777 & ~umask)


@pytest.mark.parametrize("groups", [(WORKER, 0o770), (0, 0o770)], ids=["the worker's", "root's"])
def test_a_group_of_the_workers_gives_it_rights_and_one_of_the_primarys_does_not(
    limited: Callable[..., Puppets], roots: pathlib.Path, groups: tuple[int, int]
) -> None:
    group, mode = groups
    directory = roots / "of a group"
    directory.mkdir()
    os.chown(directory, 0, group)
    directory.chmod(mode)
    expected = None if group == WORKER else errno.EACCES
    assert error_of_listen(limited(), directory / "socket") == expected


@pytest.mark.parametrize("how", ["socket", "cluster"])
def test_a_worker_cannot_have_a_file_made_or_removed_where_only_the_primary_may(
    limited: Callable[..., Puppets], roots: pathlib.Path, how: str
) -> None:
    cluster = limited()
    before = cluster.do(0, "own_rights")
    stale = roots / "stale"
    leave_stale(stale)
    assert error_of_listen(cluster, roots / "new", how) == errno.EACCES
    assert error_of_listen(cluster, stale, how) in (errno.EADDRINUSE, errno.EACCES)
    assert os.listdir(roots) == ["stale"]
    cluster.do(1, "listen")  # it goes on, and so does the primary, with its rights
    assert cluster.do(0, "own_rights") == before


def test_a_directory_that_has_become_another_one_is_not_changed_with_the_primarys_rights(
    limited: Callable[..., Puppets], roots: pathlib.Path, workers: pathlib.Path
) -> None:
    """A worker may put a link to any directory in the place of its own, and lets the primary restore and remove."""
    cluster = limited()
    path = workers / "socket"
    cluster.do(1, "listen", path=str(path))
    target = roots / "roots"
    target.mkdir()
    (target / ".socket.pycluster").write_text("root's")
    workers.rename(roots / "moved")
    workers.symlink_to(target)
    cluster.do(2, "listen", path=str(path))
    assert os.listdir(target) == [".socket.pycluster"]
    for worker in (1, 2):
        cluster.do(0, "disconnect", worker=worker)
        cluster.wait_for_exit(worker)
    assert os.listdir(target) == [".socket.pycluster"]


def test_a_primary_that_has_executed_itself_anew_still_acts_with_the_rights_of_who_bound(
    roots: pathlib.Path, workers: pathlib.Path
) -> None:
    kept = []
    for directory in (roots, workers):
        path, link = directory / "socket", directory / ".socket.pycluster"
        leave_stale(path)
        os.chown(path, WORKER, WORKER)
        os.link(path, link)
        status = path.stat()
        exported = (bytes(path), bytes(link), (status.st_dev, status.st_ino), Rights(WORKER, WORKER, ()))
        file = SocketFile.adopt(*msgspec.msgpack.decode(msgspec.msgpack.encode(exported), type=Exported))
        path.unlink()
        file.restore()
        kept.append(path.exists())
        file.remove()
        kept.append(link.exists())
    assert kept == [False, True, True, False]
