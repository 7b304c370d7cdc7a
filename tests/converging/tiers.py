"""Second tiers of several nodes in one thread, on virtual time: memory disks that take a moment and
crash, a network that loses, delays, reorders and cuts off, and lives from a shared book."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

import msgspec

from jepsen_like.simulation.loop import VirtualLoop
from quorate.base.crdt_frames import (
    NOWHERE,
    CrdtAnswer,
    CrdtFailed,
    CrdtRead,
    CrdtWrite,
    CrdtWritten,
    Position,
    Question,
    Value,
)
from quorate.base.crdt_operations import KindTag, Operation, Update
from quorate.base.frames import Run, Submit
from quorate.base.levels import LEVELS
from quorate.base.results import Failure
from quorate.base.types import NodeId
from quorate.consensus.membership import Membership
from quorate.crdt.codec import decode_leaf
from quorate.crdt.delta import path_of
from quorate.crdt.dots import Leaf, Path, make_actor
from quorate.crdt.folding import is_whole
from quorate.errors import QuorateError, UnavailableError, error_from_code
from quorate.replication.batch import Batch, encode_batch
from quorate.replication.clock import Clock
from quorate.replication.converging.lives import (
    Adopt,
    Begin,
    Begun,
    LivesCommand,
    LivesMachine,
    Noted,
    Rescuing,
)
from quorate.replication.converging.service import Converging, Surroundings
from quorate.replication.converging.view import ELEMENTS
from quorate.replication.machines import Machines
from quorate.replication.transport import CrdtFrame
from quorate.storage.memory_elements import ElementImage, MemoryElementStore

T = TypeVar("T")

_decode = msgspec.msgpack.Decoder(CrdtFrame).decode
_encode = msgspec.msgpack.Encoder().encode


class Log:
    """What the log says of lives: the machine, and all that was ever proposed to it."""

    def __init__(self) -> None:
        self.lives, self.machines = _machine()
        self.entries: list[LivesCommand] = []
        self.nonce = 0

    def submit(self, command: LivesCommand) -> Any:
        self.entries.append(command)
        return _results.decode(_feed(self.machines, command))[0][0]

    def begin(self, member: int) -> int:
        self.nonce += 1
        begun = self.submit(Begin(member, self.nonce))
        assert isinstance(begun, Begun), begun
        return begun.epoch

    def adopt(self, member: int, epoch: int, *, over: bool = False) -> bool:
        self.nonce += 1
        return isinstance(self.submit(Adopt(member, epoch, self.nonce, over)), Begun)


def _machine() -> tuple[LivesMachine, Machines]:
    lives = LivesMachine()
    return lives, Machines([lives])


def _feed(machines: Machines, command: LivesCommand) -> bytes:
    run = Run("lives", msgspec.Raw(_encode([command])))
    payload = encode_batch(Batch(0, 7, 11, (Submit(0, 0, 0, (run,)),)))
    (outcome,) = machines.apply(machines.index + 1, 1, payload, None).outcomes
    return outcome.results


_results = msgspec.msgpack.Decoder(list[list[Failure | Begun | Noted | Rescuing]])


class SlowRunner:
    """A disk that takes its time; what is under way when the node crashes may be lost or not."""

    def __init__(self, loop: asyncio.AbstractEventLoop, random: Random) -> None:
        self.loop = loop
        self.random = random
        self.crashed = False

    def run(
        self, job: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        def work() -> None:
            if self.crashed:
                return
            result: T | None = None
            error: BaseException | None = None
            try:
                result = job()
            except Exception as caught:  # noqa: BLE001  as a disk's thread does
                error = caught
            self.loop.call_later(self.random.random() * 0.001, finish, result, error)

        def finish(result: T | None, error: BaseException | None) -> None:
            if not self.crashed:
                done(result, error)

        self.loop.call_later(self.random.random() * 0.002, work)

    def stop(self) -> None:
        pass


class Node:
    """One node's tier, its disk, and its clock."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.image = ElementImage()
        self.wall_ahead_ms = 0
        self.log_reachable = True
        self.tier: Converging | None = None
        self.client = world.random.randbytes(16)
        self.sequence = 0
        self.failures: list[BaseException] = []

    def start(self) -> None:
        world = self.world
        self.lives, self.machines = _machine()
        self.store = MemoryElementStore(self.image)
        self.runner = SlowRunner(world.loop, world.random)
        clock = Clock(
            world.loop.time, lambda: int(1e12 + world.loop.time() * 1000) + self.wall_ahead_ms
        )
        self.tier = Converging(
            self.number,
            self.store,
            self.runner,
            clock,
            world.random,
            self.lives,
            Surroundings(
                send=lambda node, frame: world.send(self.number, node, frame),
                membership=lambda: world.membership,
                index=lambda: world.index,
                begin=self._begin,
                adopt=self._adopt,
                failed=self.failures.append,
                leads=lambda: world.leader == self.number and self.log_reachable,
                propose=world.log.submit,
            ),
        )
        self.tier.start()
        for other in world.nodes.values():
            if other is not self and other.tier is not None:
                world.connect(self.number, other.number)

    async def _begin(self) -> int:
        await asyncio.sleep(0.01)
        while not self.log_reachable:  # noqa: ASYNC110  virtual time
            await asyncio.sleep(0.05)
        epoch = self.world.log.begin(self.number)
        await self._applied()
        return epoch

    async def _adopt(self, epoch: int) -> bool:
        await asyncio.sleep(0.01)
        while not self.log_reachable:  # noqa: ASYNC110  virtual time
            await asyncio.sleep(0.05)
        over = make_actor(self.number, epoch) != self.engine.own.actor
        adopted = self.world.log.adopt(self.number, epoch, over=over)
        await self._applied()
        return adopted

    async def _applied(self) -> None:
        last = len(self.world.log.entries)
        while self.machines.index < last:  # noqa: ASYNC110  virtual time
            await asyncio.sleep(0.01)

    def apply(self) -> None:
        """Some of what the log has that is not applied here."""
        entries = self.world.log.entries
        behind = len(entries) - self.machines.index
        if self.tier is None or not self.log_reachable or not behind:
            return
        for _ in range(self.world.random.randint(1, behind)):
            _feed(self.machines, entries[self.machines.index])
        self.tier.applied()

    def crash(self) -> None:
        self.runner.crashed = True
        if self.tier is not None:
            self.tier.stop()
        self.tier = None
        self.image.opened = False
        self.store.close()
        for other in self.world.nodes.values():
            if other.tier is not None:
                other.tier.peer_lost(NodeId(self.number), connected=False)

    def wipe(self) -> None:
        """The disk is replaced by an empty one."""
        self.image = ElementImage()

    # --- calls ----------------------------------------------------------------------------------

    async def write(
        self,
        name: str,
        kind: KindTag,
        *operations: Operation,
        level: str = "causal",
        after: Position = NOWHERE,
        sequence: int = 0,
        again: bool = False,
    ) -> CrdtWritten:
        if self.tier is None:
            raise UnavailableError("the node is down")
        if not sequence:
            self.sequence += 1
            sequence = self.sequence
        frame = CrdtWrite(
            self.client,
            sequence,
            max(0, sequence - 100),
            LEVELS.index(level),  # type: ignore[arg-type]
            tuple(Update(name, kind, each) for each in operations),
            after,
            again,
        )
        future: asyncio.Future[CrdtWritten] = self.world.loop.create_future()
        self.tier.write(frame, lambda answer: _settle(future, answer))
        written = await future
        for result in written.results:
            if result is not None:
                raise error_from_code(result.code, result.message)
        return written

    async def ask(
        self, *questions: Question, level: str = "eventual", after: Position = NOWHERE
    ) -> tuple[list[Any], Position]:
        if self.tier is None:
            raise UnavailableError("the node is down")
        future: asyncio.Future[CrdtAnswer] = self.world.loop.create_future()
        frame = CrdtRead(1, LEVELS.index(level), questions, after)  # type: ignore[arg-type]
        self.tier.read(frame, lambda answer: _settle(future, answer))
        answer = await future
        results = msgspec.msgpack.decode(answer.results)
        for result in results:
            if len(result) == 2:
                raise error_from_code(*result)
        return [result[0] for result in results], answer.position

    async def value(
        self, name: str, kind: KindTag, *, level: str = "eventual", after: Position = NOWHERE
    ) -> Any:
        return (await self.ask(Value(name, kind), level=level, after=after))[0][0]

    def leaves(self) -> dict[Path, Leaf]:
        records = self.store.page(ELEMENTS, b"", None, 10**6, 2**40)
        return {path_of(key): decode_leaf(value) for key, value in records}

    @property
    def engine(self) -> Any:
        assert self.tier is not None
        return self.tier.engine


def _settle(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, CrdtFailed):
        future.set_exception(error_from_code(answer.code, answer.message))
    else:
        future.set_result(answer)


class World:
    """Nodes 1 to *count* and what is between them."""

    def __init__(self, count: int = 3, seed: int = 1, *, loss: float = 0.0) -> None:
        self.loop = VirtualLoop()
        self.random = Random(seed)
        self.loss = loss
        self.cut: set[frozenset[int]] = set()
        self.log = Log()
        self.leader = 0  #: who proposes of itself; 0: nobody
        self.index = 0
        self.bytes = 0
        self.frames = 0
        self.in_order = False  #: between two nodes, as on one connection
        self._arrival_s: dict[tuple[int, int], float] = {}
        #: Asked of each frame, from and to whom: whether it may pass.
        self.lets_through: Callable[[int, int, CrdtFrame], bool] = lambda *_: True
        voters = tuple(NodeId(number) for number in range(1, count + 1))
        self.membership = Membership(voters)
        self.nodes: dict[int, Node] = {}

    def start(self) -> None:
        for voter in self.membership.voters:
            self.nodes[voter] = Node(self, voter)
        for node in self.nodes.values():
            node.start()

    def connect(self, one: int, two: int) -> None:
        if frozenset((one, two)) not in self.cut:
            for here, there in ((one, two), (two, one)):
                tier = self.nodes[here].tier
                if tier is not None and self.nodes[there].tier is not None:
                    tier.peer_reached(NodeId(there))

    def separate(self, *groups: tuple[int, ...]) -> None:
        """Cut all connections between *groups*."""
        for at, group in enumerate(groups):
            for other in groups[at + 1 :]:
                for one in group:
                    for two in other:
                        self.cut.add(frozenset((one, two)))
                        for here, there in ((one, two), (two, one)):
                            tier = self.nodes[here].tier
                            if tier is not None:
                                tier.peer_lost(NodeId(there), connected=False)

    def heal(self) -> None:
        cut, self.cut = self.cut, set()
        for pair in sorted(tuple(sorted(each)) for each in cut):
            self.connect(*pair)

    def send(self, source: int, target: int, frame: CrdtFrame) -> None:
        if frozenset((source, target)) in self.cut or self.random.random() < self.loss:
            return
        if not self.lets_through(source, target, frame):
            return
        encoded = _encode(frame)
        self.bytes += len(encoded)
        self.frames += 1
        arrival_s = self.loop.time() + self.random.random() * 0.005
        if self.in_order:
            arrival_s = max(arrival_s, self._arrival_s.get((source, target), 0.0))
            self._arrival_s[source, target] = arrival_s
        self.loop.call_at(arrival_s, self._deliver, source, target, encoded)

    def _deliver(self, source: int, target: int, encoded: bytes) -> None:
        tier = self.nodes[target].tier
        if tier is not None and frozenset((source, target)) not in self.cut:
            tier.receive(_decode(encoded))

    async def _apply(self) -> None:
        """Nodes apply the log one by one, and at times some of it together."""
        while True:
            for node in self.nodes.values():
                if self.random.random() < 0.5:
                    node.apply()
            await asyncio.sleep(0.005)

    def run(self, story: Callable[[World], Coroutine[Any, Any, T]]) -> T:
        asyncio.set_event_loop(None)

        async def main() -> T:
            self.start()
            log = asyncio.ensure_future(self._apply())
            try:
                return await story(self)
            finally:
                log.cancel()
                for node in self.nodes.values():
                    if node.tier is not None:
                        node.tier.stop()
                await asyncio.sleep(0.1)
                for node in self.nodes.values():
                    assert not node.failures, node.failures

        try:
            result: T = self.loop.run_until_complete(main())
            return result
        finally:
            self.loop.close()

    async def converged(self, within_s: float = 10.0, *, among: tuple[int, ...] = ()) -> None:
        """Wait until all nodes, or those *among*, have the same records and have folded as far, and
        see that they hold the same data."""
        end_s = self.loop.time() + within_s
        live = [
            node
            for node in self.nodes.values()
            if node.tier is not None and (not among or node.number in among)
        ]

        def far(node: Node) -> tuple[object, int]:
            return node.engine.frontier, node.engine.own.generation

        while not is_whole(far(live[0])[1]) or any(far(node) != far(live[0]) for node in live[1:]):
            if self.loop.time() > end_s:
                told = {node.number: far(node) for node in live}
                raise UnavailableError(f"not equal within {within_s} s: {told}")
            await asyncio.sleep(0.02)
        for node in live[1:]:
            assert node.leaves() == live[0].leaves()
            assert node.engine.view.context == live[0].engine.view.context


__all__ = ["Node", "QuorateError", "World"]
