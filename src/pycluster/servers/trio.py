"""trio: a program that ends with its worker is cancelled. A SystemExit in the middle of its loop would break that."""

import functools
from types import ModuleType
from typing import Any

from ..child import Child


def adapt(module: ModuleType, child: Child) -> None:
    """Replace `trio.run`."""
    trio: Any = module
    plain_run = trio.run

    @functools.wraps(plain_run)
    def run(async_fn: Any, *args: Any, **options: Any) -> Any:
        async def main() -> Any:
            token = trio.lowlevel.current_trio_token()
            scope = trio.CancelScope()
            with child.ended_by(lambda: token.run_sync_soon(scope.cancel)), scope:
                return await async_fn(*args)

        return plain_run(main, **options)

    trio.run = run
