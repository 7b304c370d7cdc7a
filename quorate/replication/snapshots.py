"""Streaming the state to a member too far behind for the log (Raft 7), on a connection of its own.

Sender and receiver speak, after the connection's hello:

    SnapshotBegin ->                 which snapshot, of how many records
                  <- SnapshotResume  from where: the receiver may hold a part of this very snapshot
    SnapshotData  ->  (many)         records, with a checksum
    SnapshotEnd   ->
                  <- SnapshotResult  installed (or not needed), or why not

The records come from one read view of the last checkpoint, so clients go on writing meanwhile.
The receiver builds a store beside its own and swaps it in when it is whole.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Protocol
from zlib import crc32

import msgspec

from quorate.base.limits import FRAME_BYTES_MAX, KIB, MIB
from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.events import SnapshotOffered
from quorate.consensus.membership import encode_membership, invalid_membership
from quorate.consensus.messages import NUMBER_MAX
from quorate.errors import (
    ClosedError,
    DiskFullError,
    FormatVersionError,
    QuorateError,
    StorageError,
    StoreCorruptionError,
    UnavailableError,
    WireFormatError,
)
from quorate.replication.batch import TIME_MS_MAX
from quorate.replication.checkpoints import Checkpointer
from quorate.replication.disk import JobRunner, run_job
from quorate.replication.machines import STATE_HASH_BYTES
from quorate.replication.recovery import decode_saved_membership
from quorate.replication.replica import Replica
from quorate.storage.interfaces import (
    SnapshotChunk,
    SnapshotInstaller,
    SnapshotReader,
    StateStore,
    StoreMeta,
)
from quorate.storage.store_format import LAYOUT_VERSION

_logger = logging.getLogger("quorate.snapshots")

#: Records per frame: small enough for the reader not to hold the interpreter for long.
CHUNK_BYTES = 128 * KIB
#: A chunk holds at least one record, so it may be larger than asked for.
CHUNK_BYTES_MAX = FRAME_BYTES_MAX - MIB
#: Attempts to get one snapshot across before the leader looks afresh at what the member needs.
TRIES_MAX = 5
RETRY_S = 0.5
#: After that, or after a refusal: what keeps it from arriving (a full disk) does not pass at once.
FAILED_PAUSE_S = 1.0
#: The receiver has to make the snapshot durable and load it before it answers.
RESULT_TIMEOUT_S = 120.0
STEP_TIMEOUT_S = 20.0


class SnapshotBegin(msgspec.Struct, frozen=True, array_like=True, tag=50):
    """*term*, *sender*: of the leader. *meta*: of the checkpoint that is sent."""

    term: Term
    sender: NodeId
    meta: StoreMeta
    record_count: int


class SnapshotResume(msgspec.Struct, frozen=True, array_like=True, tag=51):
    """*position*: of the last chunk that the receiver has of this snapshot, b"" for none."""

    position: bytes


class SnapshotData(msgspec.Struct, frozen=True, array_like=True, tag=52):
    """*chunk*: an encoded ``SnapshotChunk``; *checksum*: its CRC-32."""

    chunk: bytes
    checksum: int


class SnapshotEnd(msgspec.Struct, frozen=True, array_like=True, tag=53):
    """All chunks were sent."""


class SnapshotResult(msgspec.Struct, frozen=True, array_like=True, tag=54):
    """*ok*: the receiver has the state of the snapshot, or a newer one. Else *message* says why."""

    ok: bool
    message: str = ""


SnapshotFrame = SnapshotBegin | SnapshotResume | SnapshotData | SnapshotEnd | SnapshotResult

_encode_chunk = msgspec.msgpack.Encoder().encode
_decode_chunk = msgspec.msgpack.Decoder(SnapshotChunk).decode


class SnapshotChannel(Protocol):
    """A connection whose hello is done. ``send`` waits while the other side does not read."""

    async def send(self, frame: SnapshotFrame) -> None:
        """Raises UnavailableError: the connection is gone."""
        ...

    async def receive(self) -> SnapshotFrame:
        """Raises UnavailableError (gone), WireFormatError (garbage)."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class Dial(Protocol):
    """Opens a channel to a member.

    Raises:
        UnavailableError, RefusedError.
    """

    async def __call__(self, node: NodeId) -> SnapshotChannel: ...


class SnapshotSender:
    """The leader's side. ``request`` is the replica's ``on_snapshot_needed``.

    *bytes_per_s*: pace, so that clients hardly notice.
    """

    def __init__(
        self,
        replica: Replica,
        checkpointer: Checkpointer,
        store: StateStore,
        runner: JobRunner,
        dial: Dial,
        bytes_per_s: int,
    ) -> None:
        self._replica = replica
        self._checkpointer = checkpointer
        self._store = store
        self._runner = runner
        self._dial = dial
        self._bytes_per_s = bytes_per_s
        self._tasks: dict[NodeId, asyncio.Task[None]] = {}
        self.sent_count = 0

    @property
    def active(self) -> int:
        """Streams under way."""
        return len(self._tasks)

    def request(self, node: NodeId) -> None:
        """Stream the last checkpoint to *node*; the outcome is reported to the replica."""
        if node not in self._tasks:
            task = asyncio.get_running_loop().create_task(self._run(node))
            self._tasks[node] = task

    async def stop(self) -> None:
        """End all streams."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for node in list(self._tasks):
            self._ended(node)

    async def _run(self, node: NodeId) -> None:
        index, ok = LogIndex(0), False
        try:
            reader = await run_job(self._runner, self._store.snapshot)
            try:
                index = reader.meta.applied.index
                self._checkpointer.hold(node, index)
                ok = await self._try(node, reader)
            finally:
                self._runner.run(reader.close, _ignored)  # after what is read from it now
        except StorageError as error:
            self._replica.fail(error)  # the own checkpoint cannot be read
        except QuorateError as error:
            _logger.warning("snapshot for node %d failed: %s", node, error)
        except Exception:
            _logger.exception("snapshot for node %d failed", node)
        if not ok:
            self._checkpointer.release(node)
            await asyncio.sleep(FAILED_PAUSE_S)
        self._ended(node)
        self.sent_count += ok
        self._replica.snapshot_sent(node, index, ok=ok)

    def _ended(self, node: NodeId) -> None:
        self._checkpointer.release(node)
        self._tasks.pop(node, None)

    async def _try(self, node: NodeId, reader: SnapshotReader) -> bool:
        term = self._replica.core.state.term
        for attempt in range(TRIES_MAX):
            if attempt:
                await asyncio.sleep(RETRY_S * attempt)
            if not self._leads(term):
                return False
            try:
                channel = await self._dial(node)
            except QuorateError as error:
                _logger.info("no snapshot connection to node %d: %s", node, error)
                continue
            try:
                result = await self._stream(channel, term, reader)
            except (UnavailableError, TimeoutError) as error:
                _logger.info("snapshot stream to node %d broke, will resume: %s", node, error)
                continue
            finally:
                channel.close()
            if not result.ok:
                _logger.warning("node %d did not install the snapshot: %s", node, result.message)
            return result.ok
        return False

    def _leads(self, term: Term) -> bool:
        return self._replica.is_leader and self._replica.core.state.term == term

    async def _stream(
        self, channel: SnapshotChannel, term: Term, reader: SnapshotReader
    ) -> SnapshotResult:
        sender = self._replica.node_id
        begin = SnapshotBegin(term, sender, reader.meta, reader.record_count)
        await asyncio.wait_for(channel.send(begin), STEP_TIMEOUT_S)
        answer = await asyncio.wait_for(channel.receive(), STEP_TIMEOUT_S)
        if isinstance(answer, SnapshotResult):
            return answer
        if not isinstance(answer, SnapshotResume):
            raise WireFormatError(f"a snapshot's receiver began with {type(answer).__name__}")
        loop = asyncio.get_running_loop()
        chunks = reader.chunks(answer.position, CHUNK_BYTES)
        due_s = loop.time()
        while (data := await run_job(self._runner, lambda: _next_data(chunks))) is not None:
            if not self._leads(term):
                raise UnavailableError("this node does not lead any more")
            await asyncio.wait_for(channel.send(data), STEP_TIMEOUT_S)
            due_s = max(due_s, loop.time() - 0.05) + len(data.chunk) / self._bytes_per_s
            await asyncio.sleep(max(due_s - loop.time(), 0))
        await asyncio.wait_for(channel.send(SnapshotEnd()), STEP_TIMEOUT_S)
        result = await asyncio.wait_for(channel.receive(), RESULT_TIMEOUT_S)
        if not isinstance(result, SnapshotResult):
            raise WireFormatError(f"a snapshot's receiver ended with {type(result).__name__}")
        return result


def _ignored(_result: object, _error: BaseException | None) -> None:
    """Nobody waits for a view to be closed."""


def _next_data(chunks: Iterator[SnapshotChunk]) -> SnapshotData | None:
    chunk = next(chunks, None)
    if chunk is None:
        return None
    body = _encode_chunk(chunk)
    return SnapshotData(body, crc32(body))


class _Partial:
    """A snapshot that has arrived in part."""

    def __init__(self, begin: SnapshotBegin, installer: SnapshotInstaller) -> None:
        self.meta = begin.meta
        self.record_count = begin.record_count
        self.installer = installer
        self.position = b""
        self.count = 0  # of records that arrived

    def is_of(self, begin: SnapshotBegin) -> bool:
        """Whether *begin* offers the rest of it, whoever sends."""
        return self.meta == begin.meta and self.record_count == begin.record_count


class SnapshotReceiver:
    """The follower's side: one snapshot at a time; a newer stream takes over from an older one.

    *on_failure*: the state could not be loaded after the swap; the node must stop.
    """

    def __init__(
        self,
        replica: Replica,
        checkpointer: Checkpointer,
        store: StateStore,
        store_runner: JobRunner,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._replica = replica
        self._checkpointer = checkpointer
        self._store = store
        self._runner = store_runner
        self._on_failure = on_failure
        self._partial: _Partial | None = None
        self._busy = asyncio.Lock()
        self._channel: SnapshotChannel | None = None
        self._term = Term(0)  # of the stream on that channel
        self.installed_count = 0

    async def serve(self, channel: SnapshotChannel, node: NodeId) -> None:
        """Handle one connection, dialled by member *node*, to its end; never raises for what the
        other side does."""
        try:
            begin = self._checked(await asyncio.wait_for(channel.receive(), STEP_TIMEOUT_S), node)
            answer = self._at_once(begin)
            if answer is not None:
                await channel.send(answer)
                return
            if self._channel is not None:
                self._channel.close()  # its sender has gone, or it would not send again
            self._channel = channel
            self._term = begin.term
            async with self._busy:
                await self._receive(channel, begin)
        except (DiskFullError, StoreCorruptionError) as error:
            _logger.warning("snapshot stream ended: %s", error)
        except StorageError as error:
            self._on_failure(error)
        except (QuorateError, TimeoutError) as error:
            _logger.info("snapshot stream ended: %s", error)
        except Exception as error:  # noqa: BLE001 - a broken claim, not what the other side did
            self._on_failure(error)
        finally:
            if self._channel is channel:
                self._channel = None
            channel.close()

    def _checked(self, frame: SnapshotFrame, node: NodeId) -> SnapshotBegin:
        if not isinstance(frame, SnapshotBegin):
            raise WireFormatError(f"a snapshot stream began with {type(frame).__name__}")
        problem = _invalid_begin(frame, node)
        if problem is None and node == self._replica.node_id:
            problem = "it comes from this node itself"
        if problem is not None:
            raise WireFormatError(f"node {node} sends a wrong snapshot: {problem}")
        return frame

    def _at_once(self, begin: SnapshotBegin) -> SnapshotResult | None:
        """The answer, if there is no need to see the records."""
        state = self._replica.core.state
        behind = self._channel is not None and begin.term < self._term
        if begin.term < state.term or behind:
            return SnapshotResult(ok=False, message="your term has passed")
        if begin.meta.applied.index <= state.commit:
            return SnapshotResult(ok=True)
        try:
            self._replica.machines.registry.check_versions(begin.meta)
        except QuorateError as error:
            _logger.warning("a snapshot of node %d is of no use here: %s", begin.sender, error)
            if isinstance(error, FormatVersionError):  # nor will any later one be
                asyncio.get_running_loop().call_soon(self._on_failure, error)
            return SnapshotResult(ok=False, message=str(error))
        return None

    async def _receive(self, channel: SnapshotChannel, begin: SnapshotBegin) -> None:
        partial = self._partial
        if partial is None or not partial.is_of(begin):
            if partial is not None:
                await run_job(self._runner, partial.installer.abort)
            installer = await run_job(self._runner, self._store.installer)
            partial = self._partial = _Partial(begin, installer)
        await channel.send(SnapshotResume(partial.position))
        while True:
            frame = await asyncio.wait_for(channel.receive(), STEP_TIMEOUT_S)
            if isinstance(frame, SnapshotEnd):
                break
            if not isinstance(frame, SnapshotData):
                raise WireFormatError(f"a snapshot stream held a {type(frame).__name__}")
            try:
                chunk = _checked_chunk(frame)
                await run_job(self._runner, functools.partial(partial.installer.add, chunk))
            except QuorateError as error:
                await self._drop()
                await channel.send(SnapshotResult(ok=False, message=str(error)))
                raise
            partial.position = chunk.position
            partial.count += len(chunk.records)
        self._partial = None
        try:
            if partial.count != begin.record_count:
                raise StoreCorruptionError(f"{partial.count} records came, of {begin.record_count}")
            await self._install(begin, partial.installer)
        except QuorateError as error:
            await run_job(self._runner, partial.installer.abort)
            await channel.send(SnapshotResult(ok=False, message=str(error)))
            raise
        if self._replica.core.state.commit < begin.meta.applied.index:
            await channel.send(SnapshotResult(ok=False, message="your term has passed"))
            return
        await channel.send(SnapshotResult(ok=True))

    async def _drop(self) -> None:
        partial, self._partial = self._partial, None
        if partial is not None:
            await run_job(self._runner, partial.installer.abort)

    async def _install(self, begin: SnapshotBegin, installer: SnapshotInstaller) -> None:
        """Ask the core; swap store and log; load the machines."""
        meta = begin.meta
        saved = decode_saved_membership(meta.membership)
        offer = SnapshotOffered(
            begin.term, begin.sender, meta.applied, saved.membership, saved.index
        )
        marked = msgspec.structs.replace(meta, installed=meta.applied)
        replica = self._replica
        async with self._checkpointer.lock:
            done = replica.offer_snapshot(
                offer, lambda: installer.finish(marked, begin.record_count)
            )
            if done is None:
                await run_job(self._runner, installer.abort)
                return
            await done
            try:
                for _ in replica.machines.restore(self._store):
                    await asyncio.sleep(0)
                await run_job(self._runner, self._store.release_pages)
            except Exception as error:
                self._on_failure(error)
                raise ClosedError("the node is stopping: the state was not loaded") from error
            self._checkpointer.installed(meta.applied)
            self.installed_count += 1
            replica.snapshot_loaded()
        _logger.info("installed a snapshot up to entry %d", meta.applied.index)


def _invalid_begin(begin: SnapshotBegin, node: NodeId) -> str | None:
    """Why *begin*, from member *node*, announces nothing that could be installed, or None: what
    the store and the core would stop the node for is found out before either of them sees it."""
    meta = begin.meta
    if begin.sender != node:
        return f"it says it comes from node {begin.sender}"
    if not 1 <= begin.term <= NUMBER_MAX or not 1 <= meta.applied.term <= begin.term:
        return f"entry {meta.applied} in term {begin.term}"
    if not 1 <= meta.applied.index <= NUMBER_MAX or not 0 <= meta.time_ms <= TIME_MS_MAX:
        return f"it ends at {meta.applied}, at {meta.time_ms} ms"
    if meta.format_version != LAYOUT_VERSION:
        return f"it is of format {meta.format_version}, and this node has {LAYOUT_VERSION}"
    if len(meta.state_hash) != STATE_HASH_BYTES or not 0 <= begin.record_count <= NUMBER_MAX:
        return f"{begin.record_count} records of hash {meta.state_hash.hex()[:64]}"
    try:
        saved = decode_saved_membership(meta.membership)
    except StoreCorruptionError as error:
        return str(error)
    if not 0 <= saved.index <= meta.applied.index:
        return f"its configuration is of entry {saved.index}, after {meta.applied.index}"
    return invalid_membership(encode_membership(saved.membership))


def _checked_chunk(frame: SnapshotData) -> SnapshotChunk:
    if len(frame.chunk) > CHUNK_BYTES_MAX or crc32(frame.chunk) != frame.checksum:
        raise StoreCorruptionError("a part of the snapshot was damaged on its way")
    try:
        return _decode_chunk(frame.chunk)
    except msgspec.DecodeError as error:
        raise StoreCorruptionError(f"a part of the snapshot does not decode: {error}") from error
