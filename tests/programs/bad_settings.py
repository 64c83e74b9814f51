"""Settings that are refused: nothing is changed, and the message names them."""

from typing import Any

from programs.facts import tell
from pycluster import cluster

BAD: list[dict[str, Any]] = [
    {"colour": "blue"},
    {"silent": 1},
    {"args": "--port 80"},
    {"graceful_timeout": "30"},
    {"graceful_timeout": -1},
    {"serialization": "pickle"},
    {"stdio": ["inherit", "tape"]},
    {"exec_argv": ["-O"]},
    {"silent": True, "max_pending": 0},
]
before = cluster.settings
for settings in BAD:
    try:
        cluster.setup_primary(**settings)
    except (TypeError, ValueError) as error:
        names = [name for name in settings if name in str(error)]
        tell("refused", settings=settings, error=type(error).__name__, names=names, same=cluster.settings == before)
    else:
        tell("taken", settings=settings)
BAD_ENVIRONMENTS: list[Any] = [{"NUMBER": 1}, {"A=B": "1"}, {"": "1"}, {"ZERO": "\0"}]
for environment in BAD_ENVIRONMENTS:
    try:
        cluster.fork(environment)
    except (TypeError, ValueError) as error:
        [name] = environment
        tell("refused environment", error=type(error).__name__, named=repr(name) in str(error))
