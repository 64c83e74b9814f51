"""Unix sockets that workers share: servers, names, and the file, which stays in its place until the end."""

import contextlib
import errno
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

from harness import Programs, connect_to, free_port, read_all, wait_until
from programs.unix_servers import UNIX_SERVERS
from puppets import Puppets, Start, puppets, refuses, who_answers, who_answers_at

RR_AND_NONE = ["rr", "none"]


@pytest.fixture
def directory() -> Iterator[pathlib.Path]:
    """One with a short name: a socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="pc") as name:
        yield pathlib.Path(name)


@pytest.fixture
def path(directory: pathlib.Path) -> str:
    return str(directory / "socket")


def is_closed(path: str) -> bool:
    """Whether nothing of the listener is left, its file included."""
    return not os.listdir(os.path.dirname(path))


def inode(path: str) -> int:
    return os.stat(path).st_ino


def leave_stale(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)


def listen_both(cluster: Puppets, path: str) -> None:
    """Two workers that serve in threads."""
    for worker in (1, 2):
        cluster.do(worker, "listen", path=path)
        cluster.do(worker, "serve_in_a_thread")


# ---- Servers


@pytest.mark.parametrize("kind", UNIX_SERVERS)
def test_two_workers_with_a_common_server_share_its_path_in_turn(start: Start, path: str, kind: str) -> None:
    cluster = start()
    cluster.serve(kind, path, 1)
    cluster.serve(kind, path, 2)
    assert cluster.shares(lambda: [who_answers_at(path) for _ in range(8)], 1, 2) == [4, 4]
    cluster.do(0, "disconnect", worker=1)
    assert cluster.wait_for_exit(1) == (0, None)
    assert wait_until(lambda: os.path.exists(path))
    assert [who_answers_at(path) for _ in range(4)] == [2] * 4
    cluster.do(0, "disconnect", worker=2)
    assert cluster.wait_for_exit(2) == (0, None)
    assert is_closed(path)


@pytest.mark.parametrize("kind", UNIX_SERVERS)
def test_under_sched_none_workers_share_the_listening_socket_itself(start: Start, path: str, kind: str) -> None:
    cluster = start(policy="none")
    cluster.serve(kind, path, 1)
    cluster.serve(kind, path, 2)
    assert {who_answers_at(path) for _ in range(10)} <= {1, 2}
    cluster.do(0, "disconnect", worker=1)
    assert cluster.wait_for_exit(1) == (0, None)
    assert wait_until(lambda: os.path.exists(path))
    assert [who_answers_at(path) for _ in range(4)] == [2] * 4
    cluster.do(0, "disconnect", worker=2)
    assert cluster.wait_for_exit(2) == (0, None)
    assert is_closed(path)


def test_workers_that_start_at_once_and_remove_each_others_file_share_it_all_the_same(
    start: Start, directory: pathlib.Path
) -> None:
    cluster = start(workers=6)
    for kind, workers in (("start_unix_server", (1, 2, 3)), ("removes_before_and_after", (4, 5, 6))):
        path = str(directory / kind)
        cluster.serve(kind, path, *workers)
        assert who_answers_at(path) in workers


# ---- Names


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_shared_listener_says_of_itself_what_a_plain_one_says(start: Start, path: str, policy: str) -> None:
    cluster = start(workers=1, policy=policy)
    for only_bind in (True, False):
        shared = cluster.do(1, "listen", name="shared", path=path, only_bind=only_bind)
        assert shared["name"] == path
        plain = cluster.do(1, "listen", name="plain", path=path + "2", only_bind=only_bind, how="exclusive")
        ignored = {"name", "fd", "text"} | ({"blocking"} if policy == "none" else set())
        for field in plain.keys() - ignored:
            assert shared[field] == plain[field], field
        assert path in shared["text"]
        for name in ("shared", "plain"):
            cluster.do(1, "close", name=name)
        os.unlink(path + "2")


@pytest.mark.parametrize("policy", RR_AND_NONE)
@pytest.mark.parametrize("how", ["socket", "cluster"])
def test_a_relative_path_is_the_workers_own(start: Start, directory: pathlib.Path, how: str, policy: str) -> None:
    cluster = start(policy=policy)
    for worker, path in ((1, "socket"), (2, "./socket")):
        cluster.do(worker, "change_directory", path=str(directory))
        assert cluster.do(worker, "listen", path=path, how=how)["name"] == path
        cluster.do(worker, "serve_in_a_thread")
        heard = cluster.program.wait_for("listening", worker=worker)
        assert (heard["path"], heard["host"], heard["port"]) == (str(directory / "socket"), None, None)
        assert (heard["family"], heard["type"]) == (socket.AF_UNIX, socket.SOCK_STREAM)
    assert {who_answers_at(str(directory / "socket")) for _ in range(8)} <= {1, 2}


def test_a_short_relative_path_may_be_a_long_absolute_one(start: Start, directory: pathlib.Path) -> None:
    deep = directory / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    cluster = start(cwd=str(deep))
    for worker in (1, 2):
        cluster.serve("start_unix_server", "socket", worker)
    (directory / "short").symlink_to(deep)
    path = str(directory / "short" / "socket")
    assert cluster.shares(lambda: [who_answers_at(path) for _ in range(4)], 1, 2) == [2, 2]
    cluster.do(0, "disconnect_all")
    for worker in (1, 2):
        assert cluster.wait_for_exit(worker) == (0, None)
    assert is_closed(path)


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_an_abstract_name_is_shared_too(start: Start, policy: str) -> None:
    cluster = start(policy=policy)
    name = f"\0pycluster-{os.getpid()}-{policy}"
    for worker, how in ((1, "socket"), (2, "cluster")):
        assert cluster.do(worker, "listen", path=name, how=how)["name"] == name
        cluster.do(worker, "serve_in_a_thread")
    assert cluster.program.wait_for("listening", worker=1)["path"] == name
    assert {who_answers_at(name) for _ in range(8)} <= {1, 2}
    for worker in (1, 2):
        cluster.do(worker, "close")
    assert wait_until(lambda: refuses(lambda: connect_to(name).close()))


def test_a_name_that_the_kernel_chooses_is_private(start: Start) -> None:
    cluster = start()
    names = [cluster.do(worker, "listen", path="")["name"] for worker in (1, 2)]
    assert names[0] != names[1]
    assert cluster.program.facts_of("listening") == []


@pytest.mark.parametrize("path", ["x" * 108, "\0" + "x" * 108])
def test_a_name_that_is_too_long_is_refused_as_the_socket_module_does(start: Start, path: str) -> None:
    cluster = start(workers=1)
    texts = set()
    for how in ("socket", "exclusive", "cluster"):
        with pytest.raises(RuntimeError, match="too long") as raised:
            cluster.do(1, "listen", path=path, how=how)
        texts.add(str(raised.value))
    assert len(texts) == 1


def test_errors_of_the_primarys_bind_reach_the_worker(start: Start, path: str, directory: pathlib.Path) -> None:
    cluster = start(workers=1)
    with pytest.raises(FileNotFoundError):
        cluster.do(1, "listen", path=str(directory / "missing" / "socket"))
    pathlib.Path(path).touch()
    for how in ("socket", "cluster"):
        with pytest.raises(OSError, match="in use") as raised:
            cluster.do(1, "listen", path=path, how=how)
        assert raised.value.errno == errno.EADDRINUSE
    assert os.listdir(directory) == ["socket"]


def test_an_exclusive_listener_is_this_workers_alone(start: Start, path: str) -> None:
    cluster = start()
    cluster.do(1, "listen", path=path, how="cluster exclusive")
    for how in ("socket", "cluster"):
        with pytest.raises(OSError, match="in use"):
            cluster.do(2, "listen", path=path, how=how)
    cluster.do(1, "serve_in_a_thread")
    assert who_answers_at(path) == 1


# ---- The file


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_file_that_a_worker_removes_before_it_binds_is_put_back(start: Start, path: str, policy: str) -> None:
    cluster = start(policy=policy)
    cluster.do(1, "listen", path=path)
    before = inode(path)
    os.unlink(path)
    cluster.do(2, "listen", path=path)
    assert inode(path) == before
    for worker in (1, 2):
        cluster.do(worker, "serve_in_a_thread")
    assert who_answers_at(path) in (1, 2)


def test_a_file_that_a_worker_removes_after_it_has_closed_is_put_back(start: Start, path: str) -> None:
    cluster = start()
    listen_both(cluster, path)
    cluster.do(1, "close")
    # It is there for now; what nobody tells the primary of is noticed soon.
    os.unlink(path)
    assert wait_until(lambda: os.path.exists(path))
    assert who_answers_at(path) == 2


def test_asyncio_leaves_the_file_to_the_primary_when_its_server_closes(start: Start, path: str) -> None:
    cluster = start()
    listen_both(cluster, path)
    cluster.do(1, "close")
    cluster.do(1, "asyncio_server_comes_and_goes", path=path)
    touched = os.stat(path).st_ctime_ns  # as unlink(2) and link(2) do
    cluster.do(1, "asyncio_server_comes_and_goes", path=path)
    assert os.stat(path).st_ctime_ns == touched
    assert who_answers_at(path) == 2


def test_a_file_that_a_worker_removes_before_it_exits_is_put_back(start: Start, path: str) -> None:
    cluster = start()
    listen_both(cluster, path)
    os.unlink(path)
    cluster.begin(1, "crash")
    cluster.wait_for_exit(1)
    assert who_answers_at(path) == 2


def test_a_dead_sockets_file_is_replaced_and_a_strangers_is_not(start: Start, path: str) -> None:
    cluster = start(workers=4)
    cluster.do(1, "listen", path=path)
    cluster.do(1, "serve_in_a_thread")
    os.unlink(path)
    leave_stale(path)
    cluster.do(2, "listen", path=path)
    cluster.do(2, "serve_in_a_thread")
    assert who_answers_at(path) in (1, 2)
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(path)
        stranger.listen()
        its = inode(path)
        cluster.do(3, "listen", path=path)
        assert inode(path) == its
        os.unlink(path)
    pathlib.Path(path).touch()
    cluster.do(4, "listen", path=path)
    for worker in (1, 2, 3, 4):
        cluster.do(0, "disconnect", worker=worker)
        cluster.wait_for_exit(worker)
    assert os.listdir(os.path.dirname(path)) == ["socket"], "a file that is not ours stays"


def test_a_file_that_is_removed_before_it_can_be_protected_is_made_anew(start: Start, path: str) -> None:
    cluster = start()
    cluster.do(0, "remove_before_link")
    listen_both(cluster, path)
    assert who_answers_at(path) in (1, 2)
    for worker in (1, 2):
        cluster.do(worker, "close")
    assert wait_until(lambda: is_closed(path))


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENAMETOOLONG])
def test_a_path_is_shared_where_there_are_no_hard_links(start: Start, path: str, number: int) -> None:
    cluster = start()
    cluster.do(0, "refuse_links", errno=number)
    listen_both(cluster, path)
    assert {who_answers_at(path) for _ in range(4)} <= {1, 2}
    assert os.listdir(os.path.dirname(path)) == ["socket"]
    for worker in (1, 2):
        cluster.do(worker, "close")
    assert wait_until(lambda: is_closed(path))


def test_what_a_killed_primary_has_left_is_in_nobodys_way(
    cluster_program: Programs, tmp_path: pathlib.Path, path: str
) -> None:
    leave_stale(path)
    leave_stale(os.path.join(os.path.dirname(path), ".socket.pycluster"))
    leave_stale(os.path.join(os.path.dirname(path), ".socket.pycluster.new"))
    with puppets(cluster_program, tmp_path) as cluster:
        with pytest.raises(OSError, match="in use"):
            cluster.do(1, "listen", path=path)
        for worker in (1, 2):
            cluster.do(worker, "listen", path=path, how="cluster")
            cluster.do(worker, "serve_in_a_thread")
        assert who_answers_at(path) in (1, 2)
        for worker in (1, 2):
            cluster.do(worker, "close")
        assert wait_until(lambda: is_closed(path))


@pytest.mark.parametrize("primarys", [0o022, 0o077, 0])
@pytest.mark.parametrize("how", ["socket", "cluster"])
def test_a_file_has_the_mode_that_its_workers_umask_gives_it(
    start: Start, directory: pathlib.Path, how: str, primarys: int
) -> None:
    cluster = start(workers=1)
    cluster.do(0, "set_umask", umask=primarys)
    shared, plain = directory / "shared", directory / "plain"
    for umask in (0o007, 0o177, 0o022, 0o077, 0):
        cluster.do(1, "listen", name="shared", path=str(shared), how=how, umask=umask)
        cluster.do(1, "listen", name="plain", path=str(plain), how="exclusive", umask=umask)
        assert shared.stat().st_mode == plain.stat().st_mode, oct(umask)
        for name in ("shared", "plain"):
            cluster.do(1, "close", name=name)
        plain.unlink()
        assert wait_until(lambda: not os.listdir(directory))


# ---- A stale file


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("how", ["cluster", "cluster exclusive"])
def test_cluster_listen_replaces_the_file_of_a_dead_socket(start: Start, path: str, who: int, how: str) -> None:
    cluster = start(workers=1)
    leave_stale(path)
    cluster.do(who, "listen", path=path, how=how)
    connect_to(path).close()


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("how", ["cluster", "cluster exclusive"])
def test_cluster_listen_neither_replaces_nor_disturbs_a_living_socket(
    start: Start, path: str, who: int, how: str
) -> None:
    cluster = start(workers=1)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(path)
        for listening in (False, True):
            if listening:
                stranger.listen()
            with pytest.raises(OSError, match="in use") as raised:
                cluster.do(who, "listen", path=path, how=how)
            assert raised.value.errno == errno.EADDRINUSE
            assert os.path.exists(path)
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.accept()


@pytest.mark.parametrize("who", [0, 1])
def test_a_plain_bind_refuses_a_stale_file(start: Start, path: str, who: int) -> None:
    cluster = start(workers=1)
    leave_stale(path)
    with pytest.raises(OSError, match="in use") as raised:
        cluster.do(who, "listen", path=path)
    assert raised.value.errno == errno.EADDRINUSE


# ---- When a listener closes


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_listener_closes_with_the_last_worker_that_closes_it_and_opens_again(
    start: Start, path: str, policy: str
) -> None:
    cluster = start(policy=policy)
    for _ in range(2):
        listen_both(cluster, path)
        cluster.do(1, "close")
        assert [who_answers_at(path) for _ in range(3)] == [2] * 3
        cluster.do(2, "close")
        assert wait_until(lambda: is_closed(path))


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_path_stays_open_after_the_last_worker_has_crashed_and_the_next_one_serves_what_waits(
    start: Start, path: str, policy: str
) -> None:
    cluster = start(workers=1, policy=policy)
    cluster.do(1, "listen", path=path)
    cluster.begin(1, "crash")
    assert cluster.wait_for_exit(1) == (None, "SIGKILL")
    with connect_to(path) as client:
        cluster.fork()
        cluster.do(2, "listen", path=path)
        cluster.do(2, "accept")
        assert read_all(client) == b"worker 2"


def test_a_crashed_workers_file_is_removed_when_the_cluster_ends(
    cluster_program: Programs, tmp_path: pathlib.Path, path: str
) -> None:
    with puppets(cluster_program, tmp_path, workers=1) as cluster:
        cluster.do(1, "listen", path=path)
        cluster.begin(1, "crash")
        cluster.wait_for_exit(1)
        assert os.path.exists(path)
    assert is_closed(path)


@pytest.mark.parametrize("end", ["crash", "disconnect"])
def test_connections_that_wait_in_a_worker_that_ends_are_served_by_another_one(
    start: Start, path: str, end: str
) -> None:
    cluster = start()
    for worker in (1, 2):
        cluster.do(worker, "listen", path=path)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect_to(path)) for _ in range(6)]
        assert wait_until(lambda: cluster.do(0, "stats")["pending"] == 6)
        if end == "crash":
            os.kill(cluster.pid(1), signal.SIGKILL)
        else:
            cluster.do(0, "disconnect", worker=1)
        cluster.wait_for_exit(1)
        for _ in clients:
            cluster.do(2, "accept")
        assert [read_all(client) for client in clients] == [b"worker 2"] * 6


def test_a_worker_that_drains_waits_for_its_open_connection(start: Start, path: str) -> None:
    cluster = start(workers=1)
    cluster.do(1, "listen", path=path)
    with connect_to(path) as client:
        cluster.do(1, "accept", keep=True)
        cluster.do(0, "disconnect", worker=1)
        assert wait_until(lambda: is_closed(path))
        cluster.do(1, "drop")
        assert read_all(client) == b"worker 1"
    assert cluster.wait_for_exit(1) == (0, None)


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_process_that_the_primary_forks_on_its_own_keeps_no_listener_open(
    start: Start, path: str, policy: str
) -> None:
    cluster = start(workers=1, policy=policy)
    cluster.do(1, "listen", path=path, how="cluster")
    os.link(path, path + "2")
    sleeper = cluster.do(0, "fork_a_sleeper")
    try:
        cluster.do(0, "disconnect", worker=1)
        assert cluster.wait_for_exit(1) == (0, None)
        assert refuses(lambda: connect_to(path + "2").close())
    finally:
        os.kill(sleeper, signal.SIGKILL)


@pytest.mark.skipif(shutil.which("ss") is None, reason="ss (iproute2) tells the backlog")
@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_a_worker_shuts_a_listener_down_for_itself_alone(start: Start, path: str, policy: str) -> None:
    cluster = start(policy=policy)
    listen_both(cluster, path)
    cluster.do(1, "shut_down")
    assert [who_answers_at(path) for _ in range(4)] == [2] * 4


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_the_largest_backlog_that_was_asked_for_is_in_force(start: Start, path: str, policy: str) -> None:
    cluster = start(workers=3, policy=policy)
    seen = []
    for worker, backlog in enumerate((5, 3, 64), 1):
        cluster.do(worker, "listen", path=path, backlog=backlog)
        rows = subprocess.run(["ss", "-xlnH", "src", path], capture_output=True, text=True, check=True).stdout
        seen.append(int(rows.split()[3]))
    assert seen == [5, 5, 64]


# ---- Together


@pytest.mark.parametrize("policy", RR_AND_NONE)
def test_one_worker_may_listen_on_paths_ports_and_a_descriptor_at_a_time(start: Start, path: str, policy: str) -> None:
    cluster = start(policy=policy)
    port, fd = free_port(), cluster.do(0, "open_descriptor", kind="listener")
    ports = [port, cluster.do(0, "name_of")[1]]
    for worker in (1, 2):
        cluster.do(worker, "listen", name="path", path=path)
        cluster.do(worker, "listen", name="other path", path=path + "2", how="cluster")
        cluster.do(worker, "listen", name="port", port=port)
        cluster.do(worker, "listen", name="fd", fd=fd, how="cluster")
        other = cluster.do(worker, "listen", name="port 0", how="cluster")["name"][1]
        for name in ("path", "other path", "port", "fd", "port 0"):
            cluster.do(worker, "serve_in_a_thread", name=name)
    assert {who_answers_at(at) for at in (path, path + "2") * 4} <= {1, 2}
    assert {who_answers(at) for at in (*ports, other) * 4} <= {1, 2}
    cluster.do(1, "close", name="path")
    cluster.do(2, "close", name="port")
    assert {who_answers_at(path) for _ in range(4)} == {2}
    assert {who_answers(port) for _ in range(4)} == {1}
