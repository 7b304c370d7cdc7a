"""Faults of disks: full, hanging, failing, and damaged behind the back of a stopped node."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Final

from jepsen_like.processes.fault_file import FSYNC_ERROR, FULL, STALL, WRITE_ERROR
from jepsen_like.processes.nemesis.membership import grow, shrink
from jepsen_like.processes.nemesis.stage import Stage, wait_until
from jepsen_like.processes.nodes import NodeProcess
from jepsen_like.systems.system import Bendable, Members, System

#: How long an injected error waits for the node to run into it.
HIT_TIMEOUT_S: Final = 5.0
#: A node whose disk failed, or that refuses its data, ends within this time.
END_TIMEOUT_S: Final = 30.0
SECTOR_BYTES: Final = 512


class Disk:
    """One node at a time: its disk is full; fsync hangs; fsync or a write fails, upon which the
    node must stop; or a bit of its log flips or the log is cut short while it is down, upon which
    it must refuse to start, and is replaced by a new node."""

    name = "disk"

    def missing(self, system: System) -> str:
        return "" if isinstance(system, Bendable) else f"the disks of {system.name} cannot be bent"

    async def strike(self, stage: Stage) -> None:
        kinds = ["full", "stall", "fsync-error", "write-error"]
        if isinstance(stage.system, Members):
            kinds += ["bit-flip", "truncation"]
        kind = stage.random.choice(kinds)
        free = stage.free()
        if not free or not isinstance(stage.system, Bendable):
            return
        match kind:
            case "full":
                await _hold(stage, free[0], kind, FULL)
            case "stall":
                await _hold(stage, free[0], kind, STALL)
            case "fsync-error":
                await _fail(stage, free[0], kind, FSYNC_ERROR)
            case "write-error":
                await _fail(stage, free[0], kind, WRITE_ERROR)
            case _:
                await _damage(stage, kind)


async def _hold(stage: Stage, node: NodeProcess, kind: str, bits: int) -> None:
    """A fault that the node lives with, or stops because of; afterwards it runs again."""
    system = stage.system
    if not isinstance(system, Bendable):
        return
    bend = system.bend(node.number)
    with stage.claim([node]):
        async with stage.fault(f"disk-{kind}", f"node {node.number}", [node.number]):
            bend.set_disk(bits)
            await stage.hold(0.3, 4.0)
            bend.set_disk(0)
        if not node.running:
            stage.note(f"disk-{kind}", f"node {node.number} ended with {node.exit_status}")
            if node.exit_status != system.storage_exit_status:
                _wrong_end(stage, node, f"its disk was {kind}")
            node.start()


async def _fail(stage: Stage, node: NodeProcess, kind: str, bits: int) -> None:
    """An error that the node must not survive: nothing it says later could be trusted."""
    system = stage.system
    if not isinstance(system, Bendable):
        return
    bend, counter = system.bend(node.number), kind.replace("-", "_")
    with stage.claim([node]):
        before = bend.hits(counter)
        async with stage.fault(f"disk-{kind}", f"node {node.number}", [node.number]):
            bend.set_disk(bits)
            hit = await wait_until(
                lambda: bend.hits(counter) > before or not node.running, HIT_TIMEOUT_S
            )
            status = await node.wait_ended(END_TIMEOUT_S) if hit else None
            bend.set_disk(0)
        if not hit:
            stage.note(f"disk-{kind}", f"node {node.number} wrote nothing meanwhile")
        elif status != system.storage_exit_status:
            _wrong_end(stage, node, f"a {kind} of its disk")
            node.kill()
        node.start()


async def _damage(stage: Stage, kind: str) -> None:
    """Data of a stopped node goes bad; it must say so, and a new node takes its place."""
    system = stage.system
    async with stage.surgery:
        free = [node for node in stage.free() if node.age_s > HIT_TIMEOUT_S]
        if not free or not isinstance(system, Bendable) or not isinstance(system, Members):
            return
        node = free[0]
        with stage.claim([node]):
            node.kill()
            damage = truncate if kind == "truncation" else flip_bit
            what = damage(system.log_files(node.number)[-1], stage.random)
            if not what:
                node.start()
                return
            told = f"node {node.number}: {what}"
            async with stage.fault(f"disk-{kind}", told, [node.number]):
                since = node.log_size()
                node.start()
                status = await node.wait_ended(END_TIMEOUT_S)
            if status != system.storage_exit_status:
                _wrong_end(stage, node, f"{what} of its log")
                node.kill()
            stage.note(f"disk-{kind}", f"node {node.number} said: {node.log_tail(since)}")
        system.forget_node(node.number)
        if await grow(stage):
            await shrink(stage, node.number)


def flip_bit(file: Path, random: Random) -> str:
    """Flip one bit in the part of *file* that was written, but not at its very end, where the last
    write may have been cut short by the kill; says where, "" if there is too little."""
    data = file.read_bytes()
    used = len(data.rstrip(b"\0")) // 2
    if used < SECTOR_BYTES:
        return ""
    at, bit = random.randrange(used), random.randrange(8)
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(bytes((data[at] ^ 1 << bit,)))
    return f"bit {bit} of byte {at} of {file.name} flipped"


def truncate(file: Path, random: Random) -> str:
    """Cut *file* short; says where."""
    size = random.randrange(file.stat().st_size)
    with file.open("r+b") as opened:
        opened.truncate(size)
    return f"{file.name} cut to {size} bytes"


def _wrong_end(stage: Stage, node: NodeProcess, cause: str) -> None:
    status = "ran on" if node.running else f"ended with status {node.exit_status}"
    stage.problem(f"node {node.number} {status} after {cause}; its log ends:\n{node.log_tail()}")
