"""Tests of code that uses quorate, on virtual time: a day takes milliseconds.

    def test_reminder() -> None:
        async def story(world):
            async with world.worker(app):
                await remind.options(delay=86_400).submit("ada")
                await world.run_until_idle()
            assert sent == ["ada"]

        quorate.testing.cluster().run(story)

A real node and real handles run on an event loop whose clock jumps to whatever comes next while
nothing is to be done. ``docs/testing-your-code.md`` has examples.
"""

from quorate.testing.running import run, virtual_time
from quorate.testing.world import EnqueuedTask, World, cluster

__all__ = ["EnqueuedTask", "World", "cluster", "run", "virtual_time"]
