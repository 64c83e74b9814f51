"""A serve() that is cancelled: the workers live on, the signal handlers are back, and it can be called again."""

import asyncio
import signal
import time

from programs.facts import tell, tell_events
from pycluster import cluster


async def main() -> None:
    tell_events()
    before = signal.getsignal(signal.SIGTERM)
    cluster.fork()
    try:
        await asyncio.wait_for(cluster.serve(), 0.2)
    except TimeoutError:
        tell("cancelled", workers=list(cluster.workers), same=signal.getsignal(signal.SIGTERM) == before)
    cluster.disconnect()
    await cluster.serve()
    tell("over", workers=list(cluster.workers))


if cluster.is_primary:
    asyncio.run(main())
else:
    time.sleep(60)
