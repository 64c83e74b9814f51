"""Values that go to a worker and come back: what arrives, on either side. Argument: the serialization."""

import datetime
import decimal
import sys
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec

from programs.facts import tell
from pycluster import Worker, cluster, process


@dataclass
class Point:
    x: int
    y: int


class Pair(msgspec.Struct):
    left: str
    right: str


VALUES: dict[str, Any] = {
    "None": None,
    "bool": [True, False],
    "int": [0, -1, 2**63 - 1, -(2**63), 2**64 - 1],
    "float": [0.5, -1e300],
    "str": ["", "äöü €\0 \U0001f600"],
    "bytes": b"\x00\xff",
    "list": [[], [1, [2, [3]]]],
    "tuple": (1, 2),
    "dict": {"a": {"b": []}, "": 1},
    "datetime": datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC),
    "UUID": uuid.UUID(int=7),
    "Decimal": decimal.Decimal("1.50"),
    "dataclass": Point(1, 2),
    "Struct": Pair("l", "r"),
}

if cluster.is_primary:
    cluster.setup_primary(serialization=sys.argv[1])
    names = list(VALUES)

    @cluster.on("message")
    def on_message(worker: Worker, message: Any, handle: None) -> None:
        if message != "ready":
            tell("back", name=names.pop(0), value=repr(message))
        if names:
            worker.send(VALUES[names[0]])
        else:
            worker.disconnect()

    cluster.fork()
    cluster.run()
else:
    process.on("message", lambda message, handle: process.send(message))
    process.send("ready")
