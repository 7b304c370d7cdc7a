"""One seed's run as data: the cluster, its clients, and every fault with its time.

Everything that a run draws by lot is drawn here from the seed, or from streams of chance that are
named after it (``stream``), so that a fault or a client can be left out and the rest stays as it
was. That is what makes a failing run shrinkable. ``Plan`` is written and read as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Final

import msgspec
from msgspec.structs import replace

from jepsen_like.errors import UsageError

#: Kinds of faults, in groups that are switched on and off together or one by one, with how often
#: each comes relative to the others. ``faults`` says what each does.
GROUPS: Final[Mapping[str, Mapping[str, float]]] = {
    "partition": {
        "isolate-leader": 2.0,
        "isolate-one": 1.0,
        "halves": 1.0,
        "bridge": 1.0,
        "majorities-ring": 1.0,
        "one-way": 1.5,
    },
    "network": {"clog": 1.0, "delay": 1.0, "reset": 2.0, "replay": 1.0},
    "process": {
        "crash-one": 2.0,
        "crash-leader": 2.0,
        "crash-all": 0.7,
        "pause-one": 1.0,
        "pause-leader": 1.5,
        "restart-storm": 0.5,
    },
    "clock": {"clock-drift": 1.0, "clock-jump": 1.0, "wall-jump": 1.0},
    "disk": {
        "disk-slow": 1.0,
        "disk-stall": 1.0,
        "disk-full": 1.0,
        "eio-read": 0.5,
        "eio-write": 0.7,
        "eio-fsync": 0.7,
    },
    "damage": {"bit-flip": 1.0, "truncate": 1.0, "wipe": 1.0, "rollback": 1.0},
    "members": {"add": 2.0, "promote": 1.5, "remove": 1.0, "replace": 1.0, "demote": 0.5},
    "leadership": {"transfer": 1.0},
    "snapshot": {"checkpoint": 1.0, "lag": 1.0},
    "client": {"client-crash": 1.0, "client-pause": 1.0, "client-twin": 1.0},
}

#: For those who hold something for a while: their own machines freeze, lose the network, and have
#: clocks that drift, within the margin that leases allow for (client-drift) or not (client-clock).
HOLDERS: Final[Mapping[str, float]] = {
    "client-freeze": 2.0,
    "client-cut": 1.5,
    "client-drift": 1.0,
    "client-clock": 0.5,
    "client-crash": 1.0,
    "clock-drift": 1.0,
    "clock-jump": 1.0,
    "wall-jump": 0.5,
    "pause-leader": 1.0,
    "transfer": 0.5,
    "checkpoint": 0.5,
}

#: For those who work: they freeze, and come back late; they die; they are cut off.
WORKERS: Final[Mapping[str, float]] = {
    "client-freeze": 2.0,
    "client-cut": 1.5,
    "client-crash": 2.0,
    "client-drift": 0.7,
    "client-clock": 0.5,
    "client-twin": 0.3,
    "clock-drift": 0.5,
    "clock-jump": 0.5,
    "crash-leader": 1.0,
    "crash-all": 0.5,
    "pause-leader": 1.0,
    "isolate-leader": 0.7,
    "transfer": 0.5,
    "reset": 0.5,
    "checkpoint": 0.5,
}

#: For converging data: what only it can bear, and what it shares with the log.
CONVERGERS: Final[Mapping[str, float]] = {
    "cut-off": 3.0,
    "halves": 1.0,
    "wall-hour": 1.0,
    "elements-lost": 1.0,
    "elements-back": 1.0,
    "return": 0.7,
    "crash-one": 1.5,
    "crash-all": 0.5,
    "restart-storm": 0.7,
    "pause-one": 0.5,
    "replay": 0.7,
    "delay": 0.5,
    "reset": 0.5,
    "disk-stall": 0.3,
    "eio-fsync": 0.3,
    "add": 0.7,
    "remove": 0.7,
    "replace": 0.7,
    "promote": 0.5,
    "demote": 0.3,
    "client-crash": 0.5,
    "client-twin": 0.3,
}

KINDS: Final[tuple[str, ...]] = tuple(
    dict.fromkeys((*(kind for group in GROUPS.values() for kind in group), *HOLDERS, *CONVERGERS))
)

WORKLOADS: Final = ("register", "cas-register", "set", "counter", "bank", "append")
#: Of what lasts for a while. Drawn by themselves, so that the rest of a seed is as it was.
COORDINATION: Final = (
    *("lock", "semaphore", "election", "lease", "watch", "levels"),
    *("barrier", "proclaim"),
)

#: Of data that converges.
CONVERGING: Final = ("crdt", "crdt-counter", "crdt-set", "crdt-map")

#: Of tasks and those who run them.
QUEUEING: Final = ("queue", "workflow")

#: How many seeds have one of these beside their other workloads.
COORDINATION_CHANCE: Final = 0.5
#: And how many have data that converges, as likely as not beside one of those.
CONVERGING_CHANCE: Final = 0.2

FORMAT: Final = 1


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One fault. *seconds*: how long it lasts before it is undone. *who*: picks a node of those
    there are at that time, as a number to divide by. *strength*: of 0 to 1, what it means is up to
    the kind. *seed*: for the chances within."""

    at_s: float
    kind: str
    seconds: float = 0.0
    who: int = 0
    strength: float = 0.0
    seed: int = 0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster and its clients. Times in virtual seconds unless named otherwise."""

    voters: int = 3
    learners: int = 0
    election_timeout_ms: int = 200
    heartbeat_ms: int = 30
    lease_reads: bool = False
    fast_failover: bool = True
    checkpoint_bytes: int = 4096
    segment_bytes: int = 32768
    append_bytes_max: int = 2048
    inflight_messages_max: int = 8
    uncommitted_bytes_max: int = 65536
    network_delay_ms: float = 1.0
    disk_delay_ms: float = 0.5
    clock_rates: tuple[float, ...] = ()
    clients: int = 4
    think_ms: float = 30.0
    timeout_s: float = 2.0
    workloads: dict[str, float] = {}
    operations_max: int = 400
    seconds: float = 8.0
    fsync: bool = True
    history_revisions: int = 20_000
    journal_bytes: int = 2**28
    fold_quiet_s: float = 5.0
    range_elements: int = 2048
    session_ttl_s: float = 10.0
    repeat_chance: float = 0.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All of a run. *kinds*: switched on for this seed, for the record."""

    seed: int
    settings: Settings
    faults: tuple[Fault, ...] = ()
    kinds: tuple[str, ...] = ()
    format: int = FORMAT


def stream(seed: int, name: str) -> Random:
    """Chance of its own for one part of a run; the same under any ``PYTHONHASHSEED``."""
    return Random(f"{seed}/{name}")


def draw(seed: int, workloads: Sequence[str] = ()) -> Plan:
    """The plan of *seed*; with *workloads*, some of these instead of any."""
    plan = draw_plain(seed)
    random = stream(seed, "coordination")
    settings = plan.settings
    if workloads:
        chosen = random.sample(list(workloads), min(len(workloads), random.choice((1, 2, 3))))
        settings = replace(settings, workloads=dict.fromkeys(sorted(chosen), 1.0))
    elif random.random() < COORDINATION_CHANCE:
        name = random.choice(COORDINATION)
        settings = replace(settings, workloads={**settings.workloads, name: 2.0})
    random_of_data = stream(seed, "converging-too")
    if not workloads and random_of_data.random() < CONVERGING_CHANCE:
        name = random_of_data.choice(CONVERGING)
        settings = replace(settings, workloads={**settings.workloads, name: 2.0})
    plan = replace(plan, settings=settings)
    if set(settings.workloads) & set(COORDINATION):
        plan = _with_more(plan, random, HOLDERS, (0.5, 1.0, 2.0), longer=bool(workloads))
    if set(settings.workloads) & set(CONVERGING):
        random = stream(seed, "converging")
        journal_bytes = random.choice((1000, 10_000, 2**28))
        fold_quiet_s = stream(seed, "folding").choice((0.1, 0.5, 5.0))
        range_elements = random.choice((3, 16, 2048))
        settings = replace(
            settings,
            journal_bytes=journal_bytes,
            fold_quiet_s=fold_quiet_s,
            range_elements=range_elements,
        )
        plan = replace(plan, settings=settings)
        plan = _with_more(plan, random, CONVERGERS, (1.0, 2.0), longer=bool(workloads))
    if set(settings.workloads) & set(QUEUEING):
        random = stream(seed, "queueing")
        plan = _with_more(plan, random, WORKERS, (0.5, 1.0, 2.0), longer=bool(workloads))
    return plan


def _with_more(
    plan: Plan,
    random: Random,
    kinds: Mapping[str, float],
    rates: Sequence[float],
    *,
    longer: bool,
) -> Plan:
    """*plan* with some faults of *kinds* besides, at one of *rates*; *longer*: what lasts for a
    while needs a while."""
    settings = plan.settings
    if longer:
        settings = replace(
            settings,
            seconds=random.choice((6.0, 9.0, 12.0)),
            think_ms=random.choice((20.0, 50.0, 100.0)),
            operations_max=random.choice((200, 300, 400)),
        )
    if "watch" in settings.workloads:
        settings = replace(settings, history_revisions=random.choice((20, 100, 20_000)))
    mix = {kind: weight for kind, weight in kinds.items() if random.random() < 0.7}
    more = draw_faults(random, mix or dict(kinds), settings, random.choice(rates))
    faults = tuple(sorted((*plan.faults, *more), key=lambda fault: fault.at_s))
    names = tuple(dict.fromkeys((*plan.kinds, *mix)))
    return replace(plan, settings=settings, faults=faults, kinds=names)


def draw_plain(seed: int) -> Plan:
    """The plan of *seed* without any of ``COORDINATION`` and ``CONVERGING``."""
    settings = _draw_settings(stream(seed, "settings"))
    random = stream(seed, "faults")
    mix = _draw_mix(random)
    rate = random.choice((1.0, 2.0, 2.0, 4.0))
    faults = draw_faults(random, mix, settings, rate)
    return Plan(seed=seed, settings=settings, faults=faults, kinds=tuple(mix))


def _draw_settings(random: Random) -> Settings:
    voters = random.choice((1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 5, 7))
    learners = random.choice((0, 0, 0, 1, 1, 2)) if voters < 7 else 0
    heartbeat_ms = random.choice((20, 30, 50))
    lease_reads = random.random() < 0.15
    return Settings(
        voters=voters,
        learners=min(learners, 7 - voters),
        heartbeat_ms=heartbeat_ms,
        election_timeout_ms=heartbeat_ms * random.choice((5, 6, 10)),
        lease_reads=lease_reads,
        fast_failover=random.random() < 0.7,
        checkpoint_bytes=random.choice((1500, 4000, 10_000, 1_000_000)),
        segment_bytes=random.choice((8192, 32_768, 131_072)),
        append_bytes_max=random.choice((300, 2000, 1_000_000)),
        inflight_messages_max=random.choice((1, 4, 64)),
        uncommitted_bytes_max=random.choice((4000, 65_536, 1_000_000)),
        network_delay_ms=random.choice((0.2, 1.0, 5.0, 15.0)),
        disk_delay_ms=random.choice((0.1, 0.5, 3.0, 10.0)),
        clock_rates=tuple(round(random.uniform(0.9, 1.1), 3) for _ in range(7))
        if random.random() < 0.5 and not lease_reads
        else (),
        clients=random.choice((2, 3, 4, 6, 8)),
        think_ms=random.choice((5.0, 20.0, 40.0)),
        timeout_s=random.choice((0.5, 1.0, 2.0)),
        workloads={
            name: weight
            for name in WORKLOADS
            if (weight := random.choice((0.0, 1.0, 1.0, 3.0))) > 0
        }
        or {"counter": 1.0},
        operations_max=random.choice((150, 200, 300)),
        seconds=random.choice((4.0, 6.0, 8.0)),
        session_ttl_s=random.choice((1.0, 3.0, 10.0)),
        repeat_chance=random.choice((0.0, 0.0, 0.0, 0.1)),
    )


def _draw_mix(random: Random) -> dict[str, float]:
    """Which kinds come how often: whole groups are off, some kinds come in plenty (lessons from
    where bugs hide: a little of everything finds less)."""
    mix: dict[str, float] = {}
    for kinds in GROUPS.values():
        weight = random.choice((0.0, 0.3, 1.0, 1.0, 3.0))
        for kind, share in kinds.items():
            if weight and random.random() < 0.7:
                mix[kind] = weight * share
    return mix or {"crash-leader": 1.0}


def draw_faults(
    random: Random, mix: Mapping[str, float], settings: Settings, rate: float
) -> tuple[Fault, ...]:
    """*rate* of them per second, by the weights of *mix*."""
    names, weights = list(mix), list(mix.values())
    at_s = random.uniform(0.1, 1.0)
    faults = []
    while at_s < settings.seconds:
        kind = random.choices(names, weights)[0]
        faults.append(draw_fault(random, round(at_s, 4), kind, settings))
        at_s += random.expovariate(rate)
    return tuple(faults)


def draw_fault(random: Random, at_s: float, kind: str, settings: Settings) -> Fault:
    """A fault of *kind* at that time."""
    timeout_s = settings.election_timeout_ms / 1000
    # Long enough for elections while it lasts, or too short for one: both have their bugs.
    seconds = random.choice((0.2, 1.0, 3.0, 5.0)) * timeout_s * random.uniform(0.5, 1.5)
    return Fault(
        at_s=at_s,
        kind=kind,
        seconds=round(seconds, 4),
        who=random.randrange(5040),
        strength=round(random.random(), 3),
        seed=random.getrandbits(32),
    )


# --- as a file ------------------------------------------------------------------------------------


def encode(plan: Plan) -> bytes:
    """JSON, a line for each fault."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n"


def write(path: str | Path, plan: Plan) -> None:
    """For ``read`` and ``simulate --schedule``."""
    Path(path).write_bytes(encode(plan))


def read(path: str | Path) -> Plan:
    """Raises UsageError: it cannot be read, or is no plan."""
    try:
        plan = msgspec.json.decode(Path(path).read_bytes(), type=Plan)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is not a schedule of the simulator: {error}") from error
    unknown = sorted({fault.kind for fault in plan.faults} - set(KINDS))
    if unknown or plan.format != FORMAT:
        raise UsageError(f"{path}: format {plan.format}, unknown faults {unknown}")
    return plan


def replace_settings(plan: Plan, **changes: object) -> Plan:
    """*plan* with other settings."""
    return replace(plan, settings=replace(plan.settings, **changes))


def without(plan: Plan, places: Sequence[int]) -> Plan:
    """*plan* without the faults at *places*."""
    left = tuple(fault for at, fault in enumerate(plan.faults) if at not in places)
    return replace(plan, faults=left)
