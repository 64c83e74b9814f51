"""Libraries that need more in a worker than socket.socket's methods: adapted there, once they are imported.

Nothing is imported for its own sake: what a worker never uses costs it nothing.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def _asyncio(module: ModuleType) -> None:
    from . import aio

    aio.share_ports()


def _uvloop(module: ModuleType) -> None:
    from . import uv

    uv.share_ports(module)


def _uvicorn(module: ModuleType) -> None:
    from . import asgi

    asgi.end_with_worker(module)


_ADAPTERS: dict[str, Callable[[ModuleType], None]] = {
    "asyncio.selector_events": _asyncio,
    "uvicorn.server": _uvicorn,
    "uvloop": _uvloop,
}


class _Finder:
    """Finds each of the libraries as the finders behind it do, and adapts it when it has been executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _ADAPTERS:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                _adapt_after_execution(spec, _ADAPTERS[name])
                return spec
        return None


def _adapt_after_execution(spec: ModuleSpec, adapt: Callable[[ModuleType], None]) -> None:
    loader: Any = spec.loader
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        if module.__spec__ is spec:  # a zip archive has one loader for all its modules
            adapt(module)

    loader.exec_module = exec_module


def install() -> None:
    """Adapt the libraries that are imported, and those that will be. In a worker that shares ports, once."""
    for name, adapt in _ADAPTERS.items():
        if name in sys.modules:
            adapt(sys.modules[name])
    sys.meta_path.insert(0, _Finder())
