"""Libraries that need more in a worker than socket.socket's methods: adapted there, once they are imported.

Nothing is imported for its own sake: what a worker never uses costs it nothing.
"""

import contextlib
import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .child import Child

# Which module is adapted by which function of this package.
_ADAPTERS = {
    "aiohttp.web_server": "servers.aiohttp:adapt",
    "asyncio.selector_events": "aio:share_ports",
    "asyncio.unix_events": "aio:share_paths",
    "bjoern": "servers.bjoern:adapt",
    "cheroot.server": "servers.cheroot:adapt",
    "gevent._socket3": "servers.gevent:share_ports",
    "gevent.pywsgi": "servers.gevent:close_idle",
    "granian.server.common": "servers.granian:adapt",
    "gunicorn.arbiter": "servers.gunicorn:adapt",
    "http.server": "servers.http:adapt",
    "hypercorn.asyncio.run": "servers.hypercorn:adapt",
    "ssl": "servers.ssl:adapt",
    "tornado.httpserver": "servers.tornado:adapt",
    "trio": "servers.trio:adapt",
    "twisted.internet.base": "servers.twisted:stop_reactor",
    "twisted.web.http": "servers.twisted:close_idle",
    "uvicorn.server": "servers.uvicorn:adapt",
    "uvloop": "uv:share_ports",
    "waitress.server": "servers.waitress:adapt",
}


class _Finder:
    """Finds each of the libraries as the finders behind it do, and adapts it when it has been executed."""

    def __init__(self, child: "Child") -> None:
        self._child = child

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _ADAPTERS:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                self._adapt_after_execution(name, spec)
                return spec
        return None

    def _adapt_after_execution(self, name: str, spec: ModuleSpec) -> None:
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if module.__spec__ is spec:  # a zip archive has one loader for all its modules
                _adapt(name, module, self._child)

        loader.exec_module = exec_module


def _adapt(name: str, module: ModuleType, child: "Child") -> None:
    adapt: Callable[[ModuleType, Child], None] = _import_adapter(name)
    adapt(module, child)


def _import_adapter(name: str) -> Any:
    adapter, _, function = _ADAPTERS[name].partition(":")
    return getattr(importlib.import_module(f".{adapter}", __package__), function)


def preload() -> None:
    """Import the adapters of what is imported, in a process that workers are copied from: they share them then."""
    for name in _ADAPTERS:
        if name in sys.modules:
            # A library that is too new, or half imported, is for the worker to report.
            with contextlib.suppress(Exception):
                _import_adapter(name)


def install(child: "Child") -> None:
    """Adapt the libraries that are imported, and those that will be. In a worker that shares ports, once."""
    for name in _ADAPTERS:
        if name in sys.modules:
            _adapt(name, sys.modules[name], child)
    sys.meta_path.insert(0, _Finder(child))
