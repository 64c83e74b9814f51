"""Messages between workers and the primary: in order, with descriptors, refused, held back, and last ones."""

import pytest

from harness import Fact, Programs, free_port, run_case

PACKED = {
    "None": "None",
    "bool": "[True, False]",
    "int": f"[0, -1, {2**63 - 1}, {-(2**63)}, {2**64 - 1}]",
    "float": "[0.5, -1e+300]",
    "str": repr(["", "äöü €\0 \U0001f600"]),
    "bytes": repr(b"\x00\xff"),
    "list": "[[], [1, [2, [3]]]]",
    "tuple": "[1, 2]",
    "dict": "{'a': {'b': []}, '': 1}",
    "datetime": "datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.timezone.utc)",
    "UUID": "'00000000-0000-0000-0000-000000000007'",
    "Decimal": "'1.50'",
    "dataclass": "{'x': 1, 'y': 2}",
    "Struct": "{'left': 'l', 'right': 'r'}",
}
# What JSON has no type for arrives as a string.
JSON = {**PACKED, "bytes": "'AP8='", "datetime": "'2026-01-02T03:04:05.678901Z'"}


def only(facts: list[Fact], event: str, **fields: object) -> Fact:
    [fact] = [f for f in facts if f["event"] == event and all(f[name] == value for name, value in fields.items())]
    return fact


# ---- What arrives


@pytest.mark.parametrize(("serialization", "expected"), [("msgpack", PACKED), ("json", JSON)])
def test_values_of_every_type_arrive(serialization: str, expected: dict[str, str], cluster_program: Programs) -> None:
    facts = cluster_program("echo", serialization).finish().facts
    assert {fact["name"]: fact["value"] for fact in facts if fact["event"] == "back"} == expected


@pytest.mark.parametrize(("count", "size"), [(5000, 0), (200, 20_000)])
def test_messages_arrive_in_order_both_ways_at_once(count: int, size: int, cluster_program: Programs) -> None:
    facts = cluster_program("flood", count, size).finish(30).facts
    assert only(facts, "got", by="primary")["in_order"] is True
    assert only(facts, "got", by="worker")["in_order"] is True
    assert only(facts, "exit")["code"] == 0


def test_a_message_of_10_mb_arrives(cluster_program: Programs) -> None:
    facts = cluster_program("large").finish(30).facts
    back = [fact["short"] for fact in facts if fact["event"] == "back"]
    assert back == ["first", only(facts, "over")["short"], "last"]


def test_messages_sent_at_once_after_fork_wait_until_the_worker_listens_for_them(cluster_program: Programs) -> None:
    """As in Node.js, whose processes keep messages until the first listener is there."""
    facts = cluster_program("early").finish().facts
    assert [fact["message"] for fact in facts if fact["event"] == "got"] == ["first", "second"]


# ---- What is refused


@pytest.mark.parametrize("side", ["primary", "worker"])
def test_what_cannot_be_encoded_is_a_typeerror_and_nothing_is_sent(side: str, cluster_program: Programs) -> None:
    facts = cluster_program("refused").finish().facts
    sent_by = [fact for fact in facts if ("worker" in fact) == (side == "worker")]
    assert only(sent_by, "refused", name="object")["error"] == "TypeError"
    assert only(sent_by, "refused", name="function")["error"] == "TypeError"
    other = "worker" if side == "primary" else "primary"
    assert [fact["message"] for fact in facts if fact["event"] == "got" and fact["by"] == other] == ["before", "after"]


@pytest.mark.parametrize("side", ["primary", "worker"])
def test_a_message_that_is_too_large_is_a_valueerror_that_names_the_setting(
    side: str, cluster_program: Programs
) -> None:
    facts = cluster_program("refused").finish().facts
    sent_by = [fact for fact in facts if ("worker" in fact) == (side == "worker")]
    for name in ("large", "with callback"):
        refused = only(sent_by, "refused", name=name)
        assert refused["error"] == "ValueError"
        assert "max_message_size" in refused["text"]
    assert not [fact for fact in facts if fact["event"] == "never"]


def test_send_on_a_closed_channel_raises_or_tells_the_callback(cluster_program: Programs) -> None:
    facts = cluster_program("refused").finish().facts
    for name in ("closed", "dead", "closed in worker"):
        assert only(facts, "refused", name=name)["error"] == "ChannelClosedError"
        assert only(facts, "sent", name=f"{name} with callback")["returned"] is False
    told = [fact["of"] for fact in facts if fact["event"] == "told" and "worker" not in fact]
    assert told == ["ChannelClosedError", "ChannelClosedError"]
    assert len([fact for fact in facts if fact["event"] == "told" and "worker" in fact]) == 1


# ---- Backpressure


@pytest.mark.parametrize("stopped", ["worker", "primary"])
def test_send_says_false_when_too_much_waits_and_everything_arrives_in_order(
    stopped: str, cluster_program: Programs
) -> None:
    facts = cluster_program("pressure", stopped).finish(30).facts
    full = only(facts, "full")
    assert 128 <= full["kib"] <= 4096, "more than the high-water mark, less than whatever one likes"
    assert only(facts, "arrived")["complete"] is True
    assert only(facts, "exit")["code"] == 0


@pytest.mark.parametrize("stopped", ["worker", "primary"])
def test_callbacks_are_called_with_none_in_order_when_written(stopped: str, cluster_program: Programs) -> None:
    facts = cluster_program("pressure", stopped).finish(30).facts
    assert only(facts, "written")["in_order"] is True


# ---- Descriptors


def test_sockets_and_descriptors_go_along_to_a_worker(cluster_program: Programs) -> None:
    facts = cluster_program("handles_sent").finish().facts
    got = {fact["message"]: fact["kind"] for fact in facts if fact["event"] == "got" and fact["by"] == "worker"}
    assert got == {
        "pair": "AF_UNIX SOCK_STREAM",
        "connection": "AF_INET SOCK_STREAM",
        "listener": "AF_INET SOCK_STREAM",
        "datagrams": "AF_INET SOCK_DGRAM",
        "pipe": "int",
        "file": "int",
    }
    answers = [fact["answer"] for fact in facts if fact["event"] == "answered"]
    assert answers == ["the worker has hello", "accepted in the worker"]
    assert only([fact for fact in facts if "worker" not in fact], "from pipe")["text"] == "the worker's words"


def test_sockets_and_descriptors_go_along_to_the_primary(cluster_program: Programs) -> None:
    facts = cluster_program("handles_sent").finish().facts
    got = {fact["message"]: fact["kind"] for fact in facts if fact["event"] == "got" and fact["by"] == "primary"}
    assert got == {"pipe": "int", "pair": "AF_UNIX SOCK_STREAM"}
    in_worker = [fact for fact in facts if fact.get("worker") == 1]
    assert only(in_worker, "from pipe")["text"] == "into the worker's pipe"
    assert only(in_worker, "from socket")["text"] == "into the worker's socket"


def test_the_senders_descriptor_is_closed_unless_it_is_kept_open(cluster_program: Programs) -> None:
    facts = cluster_program("handles_sent").finish().facts
    assert [fact["closed"] for fact in facts if fact["event"] == "after send"] == [True, False, True]
    assert only(facts, "from socket")["closed"] is True


def test_received_descriptors_are_not_inheritable(cluster_program: Programs) -> None:
    facts = cluster_program("handles_sent").finish().facts
    assert [fact["inheritable"] for fact in facts if fact["event"] == "got"] == [False] * 8


def test_no_descriptor_is_left_on_either_side(cluster_program: Programs) -> None:
    facts = cluster_program("handles_sent").finish().facts
    assert {fact["by"]: fact["count"] for fact in facts if fact["event"] == "left"} == {"primary": 0, "worker": 0}


KINDS = {
    "connection": "AF_INET SOCK_STREAM",
    "listener": "AF_INET SOCK_STREAM",
    "unix listener": "AF_UNIX SOCK_STREAM",
    "unix datagrams": "AF_UNIX SOCK_DGRAM",
    "datagrams": "AF_INET SOCK_DGRAM",
    "socket's file": "int",
    "pipe": "int",
}


@pytest.mark.parametrize("sender", ["primary", "worker"])
def test_each_kind_of_handle_works_on_the_other_side(sender: str, cluster_program: Programs) -> None:
    facts = run_case(cluster_program, "handle_cases", "kinds", sender)
    assert facts["used"] == KINDS
    assert facts["said"] == {name: "used" for name in KINDS if name not in ("unix datagrams", "socket's file")}


def test_large_messages_keep_their_handles_and_their_order_both_ways(cluster_program: Programs) -> None:
    assert run_case(cluster_program, "handle_cases", "large")["same"] is True


def test_a_handle_can_be_sent_again_and_each_copy_works(cluster_program: Programs) -> None:
    facts = run_case(cluster_program, "handle_cases", "twice")
    assert facts["said"] == "3 descriptors..."
    assert (facts["kept"], facts["closed"]) == (True, True)
    assert "keep_open=True" in facts["refused"], "of an object that has fileno() and no close()"


def test_handles_on_their_way_to_a_worker_that_is_killed_are_closed_everywhere(cluster_program: Programs) -> None:
    """In its socket, in the primary's memory, and in a worker that was forked meanwhile."""
    facts = run_case(cluster_program, "handle_cases", "killed")
    assert (facts["end"], facts["left"]) == ("", 0)
    assert facts["callbacks"] == 60, "one for each message, whether it was written or not"
    assert facts["some of each"] is True
    assert facts["written first"] is True


def test_handles_on_their_way_from_a_worker_that_kills_itself_are_closed_everywhere(cluster_program: Programs) -> None:
    facts = run_case(cluster_program, "handle_cases", "suicide")
    assert (facts["end"], facts["left"]) == ("", 0)


def test_a_handle_that_nobody_in_the_primary_listens_for_is_closed(cluster_program: Programs) -> None:
    facts = run_case(cluster_program, "handle_cases", "unwanted")
    assert (facts["end"], facts["pipe"]) == ("", "")


def test_a_callback_that_raises_stops_neither_the_others_nor_the_cluster(cluster_program: Programs) -> None:
    program = cluster_program("handle_cases", "raising", expects_traceback=True)
    assert program.wait_for("facts")["called"] == [0, 1, 2]
    ended = program.finish()
    assert ended.returncode == 0
    assert "LookupError: callback" in ended.stderr


def test_a_worker_that_does_not_read_keeps_nobody_else_waiting_and_gets_all_in_the_end(
    cluster_program: Programs,
) -> None:
    facts = run_case(cluster_program, "handle_cases", "slow reader")
    assert facts["said true"] <= 4, "of 100 kB each: the socket takes two, and 128 KiB may wait"
    assert facts["no more after the first False"] is True
    assert facts["trips meanwhile"] == 100
    assert facts["in order"] is True


# ---- The worker's threads, and its end


@pytest.mark.parametrize("where", ["accept", "sleep", "recv", "spin", "lock"])
def test_a_worker_whose_main_thread_is_blocked_answers_messages_and_disconnects(
    where: str, cluster_program: Programs
) -> None:
    facts = cluster_program("blocked", where, free_port()).finish().facts
    assert only(facts, "answer")["message"] == ["ping", "pycluster-control"]
    assert only(facts, "exit")["code"] == 0


def test_a_handler_that_raises_in_a_worker_is_logged_and_the_others_run(cluster_program: Programs) -> None:
    ended = cluster_program("failing_in_worker", expects_traceback=True).finish()
    assert [fact["message"] for fact in ended.facts if fact["event"] == "got"] == ["one", "two"]
    assert "LookupError: handler of one" in ended.stderr
    assert "LookupError: handler of two" in ended.stderr
    assert only(ended.facts, "exit")["code"] == 0


def test_an_error_listener_of_the_cluster_gets_what_handlers_raise_in_a_worker(cluster_program: Programs) -> None:
    ended = cluster_program("failing_in_worker", "error").finish()
    assert [fact["text"] for fact in ended.facts if fact["event"] == "error"] == ["handler of one", "handler of two"]
    assert only(ended.facts, "exit")["code"] == 0


@pytest.mark.parametrize("handler", ["process", "worker"])
def test_a_worker_whose_script_has_ended_stays_for_messages_until_it_is_disconnected(
    handler: str, cluster_program: Programs
) -> None:
    facts = cluster_program("stays", handler).finish().facts
    answers = only(facts, "answers")
    assert (answers["connected"], answers["dead"]) == (True, False)
    exit = only(facts, "exit")
    assert (exit["code"], exit["asked"], exit["answers"]) == (0, True, 4)


def test_a_worker_that_listens_for_no_messages_ends_with_its_script(cluster_program: Programs) -> None:
    exit = only(cluster_program("stays", "nowhere").finish().facts, "exit")
    assert (exit["code"], exit["asked"], exit["answers"]) == (0, False, 1)


@pytest.mark.parametrize(("how", "answers"), [("once", 2), ("goes", 2), ("is removed by a thread", 1)])
def test_a_worker_whose_script_has_ended_ends_when_its_last_listener_for_messages_has_gone(
    how: str, answers: int, cluster_program: Programs
) -> None:
    """Once that has returned: what it does last still arrives."""
    exit = only(cluster_program("stays", how).finish().facts, "exit")
    assert (exit["code"], exit["asked"], exit["answers"]) == (0, False, answers)


ENDS = [("returns", 0), ("exits", 3), ("raises", 1), ("disconnects", 0)]


@pytest.mark.parametrize(("how", "code"), ENDS)
def test_messages_sent_right_before_the_end_arrive_before_the_exit_event(
    how: str, code: int, cluster_program: Programs
) -> None:
    """The last of them do not fit into the socket: 4 MB wait in memory when the script ends."""
    exit = only(cluster_program("last_words", how, 200, 20_000).finish().facts, "exit")
    assert (exit["messages"], exit["in_order"], exit["code"]) == (200, True, code)


def test_what_was_written_before_os_exit_arrives(cluster_program: Programs) -> None:
    exit = only(cluster_program("last_words", "_exit", 20, 10).finish().facts, "exit")
    assert (exit["messages"], exit["code"]) == (20, 4)


# ---- A worker that breaks the protocol

RUBBISH = {
    "no frame": "ff" * 64,
    "an absurd length": "ffffffff00000000",
    "a descriptor that does not come": "0100000001010000c0",
    "a message that is none": "0100000001000000c1",
    "a control frame that is none": "0100000000000000c1",
    "a control frame of an unknown kind": "0900000000000000" + "81a474797065a35a5a5a"[:18],
    "a reserved field": "0000000001000100",
}


@pytest.mark.parametrize("name", RUBBISH)
def test_rubbish_on_the_channel_is_that_workers_error_and_the_others_go_on(
    name: str, cluster_program: Programs
) -> None:
    ended = cluster_program("rubbish", RUBBISH[name]).finish()
    error = only(ended.facts, "error")
    assert (error["worker"], error["type"]) == (2, "ProtocolError")
    events = [fact["event"] for fact in ended.facts if fact.get("worker") == 2]
    assert events.index("error") < events.index("disconnect") < events.index("exit")
    assert [fact["message"] for fact in ended.facts if fact["event"] == "message"] == ["ready", "ready", "still here"]
    exits = {fact["worker"]: (fact["code"], fact["asked"]) for fact in ended.facts if fact["event"] == "exit"}
    assert exits == {1: (0, True), 2: (0, False)}
    assert ended.facts[-1]["event"] == "over"
