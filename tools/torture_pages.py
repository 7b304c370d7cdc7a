"""The ways to damage a state store's data file; ``torture`` lists and runs them.

The rule: what is damaged is refused with a typed error that says the way back, or it hit nothing
that mattered and all records are there. LMDB trusts its pages, so a check that misses something
may end the process: attempts are made in worker processes (``serve``), whose end is a finding.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from quorate.errors import FormatVersionError, StoreCorruptionError
from quorate.storage.durable import REJOIN
from tools.torture_model import Effort, Tally
from tools.torture_store import (
    FIXED,
    NOTHING,
    PAGE_BYTES,
    SECTOR_BYTES,
    Held,
    Step,
    held_by,
    open_store,
    random_steps,
    scratch,
)

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 2


class Sample(msgspec.Struct, frozen=True):
    """A sound data file, and what it holds; *older* is the file one commit before."""

    data: bytes
    older: bytes
    held: Held
    older_held: Held


class Job(NamedTuple):
    """One attempt: *kind* cut, bit, blank, page or noise at *place*; *seed* for the noise."""

    kind: str
    place: int
    seed: int = 0


class Work(msgspec.Struct, frozen=True):
    """What a worker is asked to do."""

    sample: Sample
    jobs: list[Job]


def sample() -> Sample:
    """A store with several tables, long keys, large values and free pages."""
    steps = [step for step in FIXED if step.snapshot is None]
    with scratch() as folder:
        store = open_store(folder)
        path = folder / "store-00000001" / "data.mdb"
        held, photos = NOTHING, [(b"", NOTHING)]
        for step in steps:
            step.perform(store)
            held = step.after(held)
            photos.append((path.read_bytes(), held))
        # One commit that creates no table, so that the file before it is one commit older.
        last = Step(9, {"a": [(b"k01", b"again"), (b"k04", b"y" * 200), (b"k05", None)]})
        last.perform(store)
        store.close()
        return Sample(path.read_bytes(), photos[-1][0], last.after(held), held)


def damaged(sound: Sample, job: Job) -> bytes:
    """The data file with the damage of *job* done to it."""
    data = bytearray(sound.data)
    if job.kind == "cut":
        del data[job.place :]
    elif job.kind == "bit":
        data[job.place // 8] ^= 1 << job.place % 8
    elif job.kind == "blank":
        data[job.place : job.place + SECTOR_BYTES] = bytes(SECTOR_BYTES)
    elif job.kind == "page":
        older = sound.older[job.place : job.place + PAGE_BYTES].ljust(PAGE_BYTES, b"\0")
        data[job.place : job.place + PAGE_BYTES] = older
    else:
        rng = random.Random(job.seed)
        for _ in range(rng.randint(1, 8)):
            data[job.place + rng.randrange(SECTOR_BYTES)] = rng.choice((0, 255, rng.randrange(256)))
    return bytes(data)


def attempt(folder: Path, sound: Sample, job: Job) -> tuple[str, str]:
    """Open the damaged store: the outcome, and what is wrong with it or ""."""
    path = folder / "store-00000001" / "data.mdb"
    path.write_bytes(damaged(sound, job))
    try:
        store = open_store(folder)
        try:
            found = held_by(store)
        finally:
            store.close()
    except (StoreCorruptionError, FormatVersionError) as error:
        says = REJOIN in str(error) or "newer quorate" in str(error)
        says = says or "py-lmdb and quorate that wrote it" in str(error)
        return "refused", "" if says else f"the refusal does not say enough: {error}"
    except Exception as error:  # noqa: BLE001  any other error is a finding, not a failure of the tool
        return "failed", f"{type(error).__name__}: {error}"
    if found == sound.held:
        return "recovered", ""
    place = job.place // 8 if job.kind == "bit" else job.place
    if place < 2 * PAGE_BYTES and found == sound.older_held:
        # The newest meta page is lost, or one of the two has another transaction number: the last
        # checkpoint is gone whole. The log still leads from this one to the next, or refuses.
        return "a commit older", ""
    return "wrong", f"holds other records, of checkpoint {found.index}"


def serve(work_file: str) -> None:
    """The worker: does the jobs in *work_file*, prints the outcome of each on a line."""
    work = msgspec.msgpack.decode(Path(work_file).read_bytes(), type=Work)
    with scratch() as folder:
        store = open_store(folder)
        store.close()
        for job in work.jobs:
            outcome, text = attempt(folder, work.sample, job)
            sys.stdout.write(msgspec.json.encode([outcome, text]).decode() + "\n")
            sys.stdout.flush()


def _attempt_all(sound: Sample, jobs: Sequence[Job]) -> Iterator[tuple[Job, str, str]]:
    """The outcome of every job, done by ``WORKERS`` processes side by side."""
    with scratch() as folder:
        parts = [list(jobs[number::WORKERS]) for number in range(WORKERS)]
        workers = [_start(folder / f"{at}", sound, part) for at, part in enumerate(parts)]
        for at, part in enumerate(parts):
            worker, done = workers[at], 0
            while done < len(part):
                line = worker.stdout.readline() if worker.stdout is not None else b""
                if line.endswith(b"\n"):
                    outcome, text = msgspec.json.decode(line, type=tuple[str, str])
                    yield part[done], outcome, text
                else:
                    worker.wait()
                    yield part[done], "died", f"the process ended with {worker.returncode}"
                    worker = _start(folder / f"{at}-{done}", sound, part[done + 1 :])
                done += 1
            worker.communicate()


def _start(path: Path, sound: Sample, jobs: list[Job]) -> subprocess.Popen[bytes]:
    path.write_bytes(msgspec.msgpack.encode(Work(sound, jobs)))
    code = f"from tools.torture_pages import serve; serve({str(path)!r})"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)


def _run(jobs: Sequence[Job], what: str, sound: Sample, tally: Tally) -> None:
    for job, outcome, text in _attempt_all(sound, jobs):
        tally.count(what)
        tally.count(outcome)
        if text:
            tally.violation(f"{job}: {text}")


def cut_off(effort: Effort, tally: Tally) -> None:
    """The file ends early, at any byte and at every page."""
    sound = sample()
    places = {*range(0, len(sound.data), 8 * effort.store_step)}
    places |= {*range(0, len(sound.data), PAGE_BYTES)}
    if effort.store_step == 1:
        places = {*range(len(sound.data))}
    _run([Job("cut", place) for place in sorted(places)], "offsets", sound, tally)


def flip_bits(effort: Effort, tally: Tally) -> None:
    """One bit is wrong, anywhere; the meta pages' own bits are tried first of all."""
    sound = sample()
    step = effort.store_step
    places = range(0, 8 * len(sound.data), step)
    metas = [8 * (page + at) for page in (0, PAGE_BYTES) for at in range(152)]
    inner = [place + bit for place in metas for bit in range(0, 8, 1 + (step > 100) * 4)]
    _run([Job("bit", place) for place in sorted({*places, *inner})], "bits", sound, tally)


def damage_sectors(effort: Effort, tally: Tally) -> None:
    """A sector is blank, a page is as it was one commit before, or some bytes are anything."""
    sound = sample()
    sectors = range(0, len(sound.data), SECTOR_BYTES)
    jobs = [Job("blank", place) for place in sectors]
    jobs += [Job("page", place) for place in range(0, len(sound.data), PAGE_BYTES)]
    tries = effort.samples // 4
    jobs += [Job("noise", place, seed) for place in sectors for seed in range(tries)]
    _run(jobs, "damages", sound, tally)


def accept_sound(effort: Effort, tally: Tally) -> None:
    """After any history of commits the file is accepted: a check that refuses a sound store would
    cost a node its state."""
    for seed in range(effort.seed, effort.seed + effort.rounds):
        with scratch() as folder:
            held = NOTHING
            store = open_store(folder)
            for step in random_steps(seed + 1000, 40):
                step.perform(store)
                held = step.after(held)
                store.close()
                tally.count("commits")
                try:
                    store = open_store(folder)
                    wrong = "" if held_by(store) == held else "other records"
                except Exception as error:  # noqa: BLE001  any error is a finding
                    wrong = f"{type(error).__name__}: {error}"
                if wrong:
                    tally.violation(f"seed {seed}, step {step.index}: {wrong}")
                    break
            store.close()
