"""Brings what the store of a stopped node alone has to the cluster, or sets that store aside.

The work is done by the leader, piece by piece (``admin_rescue``): here the pieces are read.
Whatever ends this midway, the same may be done again, from the beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from quorate.crdt.codec import encode_delta
from quorate.crdt.dots import NUMBER_MAX, epoch_of, make_actor, member_of
from quorate.crdt.kinds import ORMap
from quorate.crdt.values import decode_key
from quorate.errors import (
    CommandError,
    ConfigError,
    MembershipError,
    StorageError,
    UnavailableError,
)
from quorate.replication.converging.lives import ESTATES
from quorate.replication.converging.rescuing import Change, Left, Source, Tally
from quorate.storage.directory import DataDirectory, Identity
from quorate.storage.durable import disk_errors
from quorate.storage.files import OsFileSystem
from quorate.storage.lmdb_elements import LmdbElementStore

#: Asks the cluster: one of the methods of ``admin_rescue``, and its arguments.
Call = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]

#: How often it is begun anew because another node leads.
TRIES: Final = 5
POLL_S: Final = 0.5
#: Lives that are asked about at once.
LIVES_AT_ONCE: Final = 10_000


class Lacking(NamedTuple):
    """What of the data under *name* cannot be had. *amount*: as in ``renaming.Short``."""

    name: Any
    kind: str
    amount: int


class Account(NamedTuple):
    """What was done, or would be. *left*: the lives of which the store had something. *left_out*:
    elements under names that *changes* does not name, as they are too many."""

    left: list[Left]
    changes: list[Change]
    left_out: int
    lacking: list[Lacking]


class Opened(NamedTuple):
    """A data directory that no node uses."""

    directory: DataDirectory
    identity: Identity
    source: Source
    store: LmdbElementStore


@contextlib.contextmanager
def open_stopped(path: str) -> Iterator[Opened]:
    """The CRDT data in the data directory *path*, of a node that is stopped.

    Raises:
        ConfigError: there is none.
        DirectoryInUseError: the node runs.
        StorageError: it is damaged, or of a newer version.
    """
    if not Path(path).is_dir():
        raise ConfigError(f"{path} is no directory")
    if not (Path(path) / "crdt" / "elements").is_dir():
        raise ConfigError(f"{path} holds no CRDT data: give the data directory of a node")
    with DataDirectory(path) as directory:
        identity = directory.owner()
        if identity is None:
            raise ConfigError(
                f"{directory.identity_path} is missing: nobody knows whose data it is"
            )
        store = LmdbElementStore(directory.elements_path)
        try:
            yield Opened(directory, identity, Source(identity.node, store), store)
        finally:
            store.close()


# --- what to do -----------------------------------------------------------------------------------


async def plan(
    source: Source, call: Call, *, wait_s: float, incomplete: bool = False
) -> list[Left]:
    """The lives of which the store has what the members do not have, without names for them yet.
    Lives that are to be folded first are waited for. *incomplete*: go on if records are missing.

    Raises:
        MembershipError: the node is a member: it is to be started.
        UnavailableError: it cannot be told yet, and why.
        CommandError: it cannot be told any more.
        StorageError: the store does not keep all that is to be rescued.
    """
    lives = source.lives()
    loop = asyncio.get_running_loop()
    end_s = loop.time() + wait_s
    told = await _ask(call, list(lives))
    while loop.time() < end_s and any(
        life["waits"] and life["has"] < lives[actor] for actor, life in told.items()
    ):
        await asyncio.sleep(POLL_S)
        told = await _ask(call, list(lives))
    for actor, life in told.items():
        if life["since"] >= 0 or lives[actor] <= life["has"]:
            continue
        if life["waits"]:
            raise UnavailableError(
                f"{life['why']}. If node {member_of(actor)} is still a member, start it: what it "
                f"has spreads by itself. If it was removed, or this is an old copy, see `quorate "
                f"status --json` for the members that folding waits for, and try again then"
            )
        raise (MembershipError if life["member"] else CommandError)(life["why"])
    left = [
        Left(actor, told[actor]["since"], last, _placeholder(actor, number))
        for number, (actor, last) in enumerate(lives.items())
        if 0 <= told[actor]["since"] < last
    ]
    for each in left:
        if source.count(each) < each.last - each.since and not incomplete:
            raise StorageError(
                f"of records {each.since + 1} to {each.last} of life {epoch_of(each.actor)}, which "
                f"nobody else has, this store does not keep all, as they were too many; "
                f"--incomplete rescues those that there are"
            )
    return [each for each in left if source.count(each)]


async def _ask(call: Call, actors: list[int]) -> dict[int, dict[str, Any]]:
    """What the cluster says of these lives."""
    found: dict[int, dict[str, Any]] = {}
    for at in range(0, len(actors), LIVES_AT_ONCE):
        told = await call("crdt.lives", {"actors": actors[at : at + LIVES_AT_ONCE]})
        for each in told["lives"]:
            each["member"] = member_of(each["actor"]) in told["members"]
            found[each["actor"]] = each
    return found


def _placeholder(actor: int, number: int) -> int:
    """A name for a life that is only looked at."""
    return make_actor(member_of(actor) + ESTATES, NUMBER_MAX - number)


def preview(source: Source, left: list[Left]) -> Account:
    """What would be done."""
    tally = Tally()
    for each, delta in source.deltas(left):
        tally.add(each, delta)
    return Account(left, tally.changes(), tally.left_out, [])


async def rescue(source: Source, left: list[Left], call: Call) -> Account:
    """Have the cluster take in what *left* names.

    Raises:
        QuorateError: it was not, or not all of it; do it again.
    """
    if not left:
        return Account([], [], 0, [])
    for _ in range(TRIES):
        named = [await _named(each, call) for each in left]
        tally = Tally()
        node, lacking = await _merge(source, named, call, tally)
        if node and any(lacking.values()):  # what came later may have brought rights
            node, lacking = await _merge(source, named, call, Tally())
        if not node:
            continue
        try:
            for each in named:
                await call(
                    "crdt.rescued",
                    {"actor": each.actor, "estate": each.estate, "upto": each.last, "node": node},
                )
        except UnavailableError:
            continue
        short = [Lacking(*key, amount) for key, amount in sorted(lacking.items(), key=repr)]
        return Account(named, tally.changes(), tally.left_out, short)
    raise UnavailableError("no node led for long enough, or too few have it yet: do it again")


async def _named(left: Left, call: Call) -> Left:
    told = await call("crdt.rescue", {"actor": left.actor})
    if told["since"] != left.since:
        raise UnavailableError("somebody else rescues the same: do it again")
    return left._replace(estate=told["estate"])


async def _merge(
    source: Source, left: list[Left], call: Call, tally: Tally
) -> tuple[int, dict[tuple[Any, str], int]]:
    """Hand over all; returns the node that took it, 0: it was more than one, and what is short."""
    node, lacking = 0, dict[tuple[Any, str], int]()
    for each, delta in source.deltas(left):
        told = await call("crdt.merge", {"estate": each.estate, "delta": encode_delta(delta)})
        if node and told["node"] != node:
            return 0, lacking
        node = told["node"]
        tally.add(each, delta)
        for path, amount in told["short"]:
            lacking[_name_of(tuple(path))] = amount
    return node, lacking


def _name_of(path: tuple[bytes, ...]) -> tuple[Any, str]:
    place = path if len(path) % 2 else (*path, b"")
    return decode_key(path[0]), ORMap.locate(place)[0].name


# --- giving it up ---------------------------------------------------------------------------------


async def check_spare(source: Source, call: Call) -> None:
    """Refuse to do without a store that has what the members got from others through it alone.

    Raises:
        UnavailableError: so it is.
    """
    own = source.lives()
    others = {
        actor: last for actor, last in source.own.frontier.items() if actor not in own and last
    }
    told = await _ask(call, list(others))
    lacking = sorted(
        {
            member_of(actor)
            for actor, each in told.items()
            if each["waits"] and each["has"] < others[actor]
        }
    )
    if lacking:
        raise UnavailableError(
            f"the node that was asked lacks records of members {lacking} that are here: wait until "
            f"it has them, or ask another"
        )


def set_aside(found: Opened) -> str:
    """Move the CRDT data into a directory of its own, which can be rescued from; returns its name.

    Raises:
        StorageError: the disk failed.
    """
    found.store.close()
    files, source = OsFileSystem(), Path(found.directory.path)
    number = 1
    while (target := source / f"aside-{number}").exists():
        number += 1
    with DataDirectory(target, files) as aside:
        aside.write_identity(msgspec.structs.replace(found.identity, log_begun=False))
    with disk_errors(f"setting {source / 'crdt'} aside"):
        files.rename(str(source / "crdt"), str(target / "crdt"))
        files.fsync_dir(str(target))
        files.fsync_dir(str(source))
    return str(target)


def describe(account: Account) -> Mapping[str, Any]:
    """*account* as plain values."""
    return {
        "lives": [
            {
                "member": member_of(each.actor),
                "epoch": epoch_of(each.actor),
                "since": each.since,
                "upto": each.last,
            }
            for each in account.left
        ],
        "changes": [each._asdict() for each in account.changes],
        "left_out": account.left_out,
        "lacking": [each._asdict() for each in account.lacking],
    }
