"""The promises under injected faults, in short; tests/soak has the long forms."""

from harness import Programs, free_port
from soak.crashes import storm


def test_a_worker_that_is_killed_at_any_moment_loses_only_what_it_has_accepted() -> None:
    result = storm(kills=20, workers=3)
    assert result.lost == 0, result
    assert result.answered > 50


def test_what_waits_for_the_only_worker_when_it_is_killed_is_served_by_the_next_one() -> None:
    result = storm(kills=6, workers=1)
    assert result.lost == 0, result
    assert result.answered > 20


def test_frames_that_no_worker_sends_harm_neither_the_primary_nor_the_others(cluster_program: Programs) -> None:
    program = cluster_program("hostile", 2000, free_port(), 1, 60)
    fact = program.wait_for("attacked", timeout=60)
    assert fact["sent"] == 2000
    assert fact["leaked"] == []
    assert fact["answer"] == "worker 1"
    assert program.finish().returncode == 0
