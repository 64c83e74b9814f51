"""A worker's process: what it starts with, what it ends with, and what it starts itself."""

import pytest

from harness import Fact, Programs, free_port


def by(facts: list[Fact], event: str) -> list[str]:
    return [fact["by"] for fact in facts if fact["event"] == event]


def only(facts: list[Fact], event: str) -> Fact:
    [fact] = [fact for fact in facts if fact["event"] == event]
    return fact


@pytest.mark.parametrize("way", ["exits", "disconnects", "raises", "returns", "thread"])
def test_exit_functions_run_in_the_process_that_registered_them(way: str, cluster_program: Programs) -> None:
    facts = cluster_program("exits", way, expects_traceback=way == "raises").finish().facts
    assert by(facts, "atexit") == ["worker", "primary"]
    assert by(facts, "finalized") == ["worker", "primary"]


@pytest.mark.parametrize("way", ["exits", "disconnects", "raises", "returns"])
def test_a_temporary_directory_is_deleted_by_the_process_that_made_it(way: str, cluster_program: Programs) -> None:
    facts = cluster_program("exits", way, expects_traceback=way == "raises").finish().facts
    [exit] = [fact for fact in facts if fact["event"] == "exit"]
    assert exit["there"] is True, "the primary's is still there"
    assert exit["content"] == [], "the worker's own is gone"
    [over] = [fact for fact in facts if fact["event"] == "over"]
    assert over["there"] is True


def test_what_only_the_primarys_main_module_keeps_is_not_finalized_by_a_worker(cluster_program: Programs) -> None:
    facts = cluster_program("kept_by_module").finish().facts
    assert [(fact["worker"], fact["there"]) for fact in facts] == [(1, True), (2, True)]


@pytest.mark.parametrize(
    ("way", "how"), [("hook", "raises"), ("hook", "starts badly"), ("stderr", "raises"), ("stderr", "exits")]
)
def test_a_worker_that_cannot_say_how_it_ends_ends_nevertheless(way: str, how: str, cluster_program: Programs) -> None:
    """What is raised meanwhile does not unwind into the primary's script, of which it is a copy."""
    ended = cluster_program("ends_unsaid", way, how).finish()
    assert only(ended.facts, "exit")["code"] == 1
    assert not [fact for fact in ended.facts if fact["event"] == "unwound"]
    assert only(ended.facts, "over")["primary"] is True
    assert ended.returncode == 0


def test_a_worker_waits_for_its_threads_when_its_script_has_ended(cluster_program: Programs) -> None:
    facts = cluster_program("exits", "thread").finish().facts
    events = [fact["event"] for fact in facts]
    assert events.index("worked") < events.index("exit")


def test_a_worker_that_is_disconnected_as_it_enters_accept_ends(cluster_program: Programs) -> None:
    """The end of the script must reach a main thread that is just about to block."""
    facts = cluster_program("just_listening", free_port(), 150).finish(50).facts
    assert [fact["code"] for fact in facts if fact["event"] == "exit"] == [0] * 150


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["subprocess", "fork", "multiprocessing"])
def test_a_process_that_a_worker_starts_is_no_worker(kind: str, method: str, cluster_program: Programs) -> None:
    own = free_port()
    program = cluster_program("family", method, kind, free_port(), own)
    facts = program.finish().facts
    grandchild = only(facts, "grandchild")
    assert (grandchild["connected"], grandchild["port"]) == (False, own)
    assert grandchild["sent"] in ("ChannelClosedError", "NotWorkerError")
    if kind == "subprocess":
        role = only(facts, "role")
        assert (role["is_primary"], role["own"]) == (True, None)
    assert len([fact for fact in facts if fact["event"] == "message"]) == 1, "the worker's own"
    assert len([fact for fact in facts if fact["event"] == "listening"]) == 1, "the worker's own"


@pytest.mark.parametrize("policy", ["rr", "none"])
@pytest.mark.parametrize("kind", ["subprocess", "fork"])
def test_a_process_that_a_worker_starts_keeps_neither_the_cluster_nor_its_port(
    kind: str, policy: str, cluster_program: Programs
) -> None:
    program = cluster_program("family", "fork", kind, free_port(), free_port(), env={"PYCLUSTER_SCHED_POLICY": policy})
    facts = program.finish().facts
    exit = only(facts, "exit")
    assert (exit["code"], exit["asked"]) == (0, True)
    assert only(facts, "alive")["alive"] is True
    assert only(facts, "over")["refuses"] is True


@pytest.mark.parametrize("policy", ["rr", "none"])
@pytest.mark.parametrize("kind", ["subprocess", "fork", "multiprocessing"])
def test_a_killed_worker_is_gone_though_a_process_that_it_started_lives(
    kind: str, policy: str, cluster_program: Programs
) -> None:
    environment = {"PYCLUSTER_SCHED_POLICY": policy, "KILL": "1"}
    program = cluster_program("family", "fork", kind, free_port(), free_port(), env=environment)
    facts = program.finish().facts
    exit = only(facts, "exit")
    assert (exit["code"], exit["signal"]) == (None, "SIGKILL")
    assert only(facts, "disconnect")
    assert only(facts, "alive")["alive"] is True
    assert only(facts, "over")["refuses"] is True


@pytest.mark.parametrize(("method", "whose"), [("fork", "primary"), ("fork", "worker"), ("spawn", "worker")])
def test_a_forked_process_forks_others_in_turn(method: str, whose: str, cluster_program: Programs) -> None:
    facts = cluster_program("generations", method, whose, 4, free_port()).finish().facts
    assert [fact["left"] for fact in facts if fact["event"] == "born"] == [3, 2, 1, 0]


def test_workers_do_not_share_the_primarys_random_numbers(cluster_program: Programs) -> None:
    facts = cluster_program("libraries", "fork", "run").finish().facts
    numbers = [fact["random"] for fact in facts if fact["event"] == "works"]
    assert len(set(numbers)) == 2
