"""Real processes killed while they write a real log and store; ``torture`` runs it.

The page cache outlives a process, so this shows less than ``torture_wal`` and ``torture_store``
about power cuts, and more about everything else: real files, real LMDB, any moment.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.messages import Entry, EntryId, HardState
from quorate.errors import QuorateError
from quorate.storage.wal import WriteAheadLog
from tools.torture_model import Effort, Tally
from tools.torture_store import NOTHING, held_by, open_store, random_steps, scratch

ROOT = Path(__file__).resolve().parent.parent
STEPS = 400
SEGMENT_BYTES = 16 * 1024


def _open_log(folder: Path) -> WriteAheadLog:
    return WriteAheadLog(str(folder / "log"), segment_bytes=SEGMENT_BYTES)


def _entry(index: int) -> Entry:
    return Entry(LogIndex(index), Term(1), 0, b"%d" % index * (index % 400))


def work(folder_name: str, seed: int) -> None:
    """The victim: appends entry i to the log, then makes step i of the store; tells when done."""
    folder = Path(folder_name)
    log = _open_log(folder)
    log.recover()
    store = open_store(folder / "state")
    for step in random_steps(seed, STEPS):
        log.append([_entry(step.index)], HardState(Term(1), NodeId(1), LogIndex(step.index)))
        sys.stdout.write("log\n")
        sys.stdout.flush()
        step.perform(store)
        sys.stdout.write("store\n")
        sys.stdout.flush()
        if step.index % 40 == 0:
            log.cut(log_floor(step.index - 20))


def log_floor(index: int) -> EntryId:
    """The name of the entry at *index*."""
    return EntryId(LogIndex(index), Term(1))


def kill_processes(effort: Effort, tally: Tally) -> None:
    """SIGKILL at a random time: what was acknowledged is there, and at most one step more."""
    rng = random.Random(effort.seed)
    for number in range(effort.kills):
        with scratch() as folder:
            seed = effort.seed + number % 7
            delay_s = rng.uniform(0.001, 0.5)
            logged, stored = _run_and_kill(folder, seed, delay_s)
            tally.count("kills")
            tally.count("steps", stored)
            replay = f"seed {seed}, killed {delay_s:.3f} s after the first line"
            try:
                _check(folder, seed, logged, stored, tally, replay)
            except QuorateError as error:
                tally.violation(f"{replay}: {type(error).__name__}: {error}")


def _run_and_kill(folder: Path, seed: int, delay_s: float) -> tuple[int, int]:
    """How many entries and how many steps of the store were acknowledged."""
    code = f"from tools.torture_kill import work; work({str(folder)!r}, {seed})"
    output = folder / "output"
    with output.open("wb") as file:
        victim = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=file)
        while victim.poll() is None and not output.stat().st_size:
            time.sleep(0.001)
        time.sleep(delay_s)
        victim.kill()
        victim.wait()
    lines = output.read_text("ascii").split("\n")
    return lines.count("log"), lines.count("store")


def _check(folder: Path, seed: int, logged: int, stored: int, tally: Tally, replay: str) -> None:
    log = _open_log(folder)
    found = log.recover()
    last = found.floor.index + len(found.metas)
    if not logged <= last <= logged + 1 or found.hard_state.commit != last:
        tally.violation(f"{replay}: {logged} entries acknowledged, {last} found")
    first = LogIndex(found.floor.index + 1)
    entries = log.read(first, LogIndex(last), 1 << 30) if found.metas else []
    if entries != [_entry(index) for index in range(first, last + 1)]:
        tally.violation(f"{replay}: other entries than were appended")
    log.close()
    allowed = [NOTHING]
    for step in random_steps(seed, STEPS)[: stored + 1]:
        allowed.append(step.after(allowed[-1]))
    store = open_store(folder / "state")
    held = held_by(store)
    store.close()
    tally.count("recovered")
    if held not in allowed[stored:]:
        tally.violation(f"{replay}: {stored} steps acknowledged, the store is at {held.index}")
