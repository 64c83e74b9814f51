"""The start method "forkserver": the template, its clones, and its end. What all start methods do is in test_start."""

import functools
import pathlib
import signal

import pytest

from harness import CASE_S, Case, Programs, run_case, wait_until


@pytest.fixture
def case(cluster_program: Programs) -> Case:
    """Run a case of forkserver_cases.py."""
    return functools.partial(run_case, cluster_program, "forkserver_cases")


# ---- A worker


def test_a_worker_is_the_primarys_child_and_has_nothing_of_it(case: Case) -> None:
    facts = case("a_worker_is_clean")
    assert facts["parent"] == facts["primary"]
    assert facts["mark"] is None
    assert facts["opened"] is False
    assert facts["threads"] == facts["threads too"] == 0


def test_a_fork_in_a_running_loop_gives_a_worker_without_one_that_runs_children_of_its_own(case: Case) -> None:
    facts = case("in_a_running_loop")
    assert facts["end"] == [0, None]
    assert (facts["asyncio"], facts["subprocess"], facts["forked"]) == (5, 4, 6)


def test_a_worker_signals_itself_and_not_the_template(case: Case) -> None:
    facts = case("signals")
    assert (facts["heard"], facts["ids"]) == (3, True)


def test_a_worker_that_aborts_or_faults_is_gone_and_the_template_is_not(case: Case) -> None:
    facts = case("ends_by_signals")
    assert (facts["aborts"], facts["faults"]) == ([None, "SIGABRT"], [None, "SIGSEGV"])
    assert facts["template"] == 1


def test_threads_that_fork_at_a_time_get_a_worker_each_and_start_one_template(case: Case) -> None:
    facts = case("threads_meet")
    assert facts["errors"] == []
    assert facts["ids"] == list(range(1, 21))
    assert facts["children"] == 21


def test_a_signal_handler_forks_while_its_thread_waits_for_the_template(case: Case) -> None:
    facts = case("signals_meet")
    assert facts["errors"] == []
    assert facts["same"]
    assert facts["templates"] == 1


def test_a_robust_mutex_of_a_killed_worker_passes_to_another_one(case: Case, tmp_path: pathlib.Path) -> None:
    facts = case("mutexes", str(tmp_path / "mutex"))
    assert facts["end"] == [None, "SIGKILL"]
    assert facts["error"] == 130  # EOWNERDEAD


def test_a_worker_has_the_primarys_directory_environment_and_path_of_now(case: Case, tmp_path: pathlib.Path) -> None:
    seen = case("surroundings", str(tmp_path))["seen"]
    assert seen == [
        {"cwd": str(tmp_path), "env": "changed", "path": "/later", "odd": True},
        {"cwd": str(tmp_path.parent), "env": "given", "path": "/later", "odd": True},
    ]


def test_a_counter_that_a_preloaded_module_has_made_is_the_clusters(case: Case) -> None:
    facts = case("counters")
    assert facts["worker"] == {"value": 2, "regions": 0}
    assert (facts["hits"], facts["other"]) == (2, 0)


# ---- The template


def test_one_template_preloads_for_all_workers_and_is_gone_after_run(case: Case) -> None:
    facts = case("one_template")
    assert (facts["templates"], facts["children"], facts["living"]) == (1, 2, True)
    assert facts["after"] == []


@pytest.mark.parametrize("dispatches", ["yes", "no"])
def test_a_template_that_dies_is_replaced_and_its_workers_go_on(case: Case, dispatches: str) -> None:
    facts = case("died", dispatches)
    assert (facts["another"], facts["reaped"], facts["worker"]) == (True, True, None)


def test_a_template_can_be_discarded_for_a_new_one(case: Case) -> None:
    facts = case("discarded")
    assert (facts["another"], facts["left"], facts["worker"]) == (True, True, None)


def test_other_flags_or_modules_need_another_template(case: Case) -> None:
    facts = case("other_settings")
    assert facts["templates"] == [0, 1, 2, 2]
    assert facts["optimize"] == [0, 1, 0, 0]
    assert facts["children"] is True


def test_a_template_is_gone_when_the_primary_is_whatever_it_imports(cluster_program: Programs) -> None:
    program = cluster_program("forkserver_cases", "template", env={"PRELOADED": "hang"})
    program.wait_for_line("hangs")
    program.send_signal(signal.SIGKILL)
    assert wait_until(lambda: len(program.processes()) == 0)
    assert program.wait_until_alone() == []


# ---- What fails


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("raise", "LookupError: of all things"),
        ("exit", "SystemExit: enough"),
        ("die", "killed by signal 6"),
        ("thread", "for ever"),
    ],
)
def test_a_template_that_cannot_preload_is_a_cluster_error_that_says_why(
    cluster_program: Programs, how: str, why: str
) -> None:
    program = cluster_program("forkserver_cases", "fails", how, expects_traceback=True)
    facts = program.wait_for("facts")
    assert facts["error"].startswith("ClusterError: ")
    assert "programs.preloaded" in facts["error"]
    assert why in facts["error"]
    assert (facts["left"], facts["children"], facts["later"]) == (0, [], True)
    assert ("preloaded.py" in program.finish().stderr) is (how in ("raise", "exit"))


def test_a_module_whose_threads_stop_before_a_fork_can_be_preloaded(cluster_program: Programs) -> None:
    facts = cluster_program("forkserver_cases", "one_template", env={"PRELOADED": "stop"}).wait_for("facts")
    assert (facts["templates"], facts["children"]) == (1, 2)


def test_a_template_that_imports_for_ever_is_killed(case: Case) -> None:
    facts = case("hangs")
    assert facts["error"].startswith("ClusterError: ")
    assert (facts["left"], facts["children"], facts["later"]) == (0, [], True)


def test_a_template_that_does_not_answer_is_killed(case: Case) -> None:
    facts = case("stopped")
    assert facts["error"].startswith("ClusterError: ")
    assert (facts["left"], facts["later"]) == ([], True)
    assert facts["descriptors"] < 0  # the template's


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_a_worker_whose_template_ends_before_it_has_told_of_it_is_a_worker_like_any_other(
    cluster_program: Programs, how: str
) -> None:
    program = cluster_program("forkserver_cases", "interrupted", env={"PRELOADED": how})
    facts = program.wait_for("facts", timeout=CASE_S)
    assert facts["children"] is True
    assert facts["ids"] == [1, 2]
    assert facts["said"] == [["alive"], ["alive"]]
    assert facts["ends"] == [[None, "SIGTERM"], [None, "SIGTERM"]]
    assert facts["left"] == facts["after"] == []


def test_fork_fails_where_the_directory_is_missing(case: Case) -> None:
    facts = case("directories")
    assert facts["errors"] == ["FileNotFoundError", "NotADirectoryError"]


def test_a_fork_without_room_for_descriptors_leaves_nothing_behind(case: Case) -> None:
    facts = case("no_room")
    assert facts["errors"] == [24]  # EMFILE
    assert facts["worked"] == [11]
    assert facts["same"] is True
