"""Three members in one process: replication, failover, restarts, membership, snapshots."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quorate import Node, NodeConfig
from quorate.base.frames import AdminRequest, Run, Submit
from quorate.base.kv_commands import Put
from quorate.errors import (
    InvalidArgumentError,
    MembershipError,
    NotLeaderError,
    QuorateError,
    TransferRefusedError,
)


class Writer:
    """Puts numbered keys through a handle until told to stop; remembers what was acknowledged."""

    def __init__(self, db: Any) -> None:
        self.db = db
        self.acknowledged: list[int] = []
        self._stop = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        number = 0
        while not self._stop:
            number += 1
            with contextlib.suppress(QuorateError):
                await self.db.kv.put(f"w/{number:08d}", str(number))
                self.acknowledged.append(number)
            if number % 20 == 0:
                await asyncio.sleep(0.001)

    async def stop(self) -> None:
        self._stop = True
        await self._task

    async def check(self, db: Any) -> None:
        assert self.acknowledged
        for number in self.acknowledged:
            found = await db.kv.get(f"w/{number:08d}")
            assert found is not None, f"acknowledged key {number} is lost"
            assert found.value == str(number).encode()


async def test_what_one_node_stored_it_has_after_a_restart(cluster: Any) -> None:
    await cluster.found(1)
    db = cluster.connect()
    for number in range(50):
        await db.kv.put(f"k{number}", "v")
    await cluster.crash(1)
    node = await cluster.start(1)
    assert (await db.kv.get("k49")).value == b"v"
    assert node.status()["keys"] == 50


async def test_members_agree_and_each_serves_every_client(cluster: Any) -> None:
    await cluster.found(3)
    for number in (1, 2, 3):
        db = cluster.connect(number)
        await db.kv.put(f"via{number}", "x")
    for number in (1, 2, 3):
        pinned = cluster.connect(number, follow_leader=False)
        assert (await pinned.kv.get("via3")).value == b"x"
    await cluster.converged()


async def test_a_crashed_leader_loses_nothing_acknowledged(cluster: Any) -> None:
    await cluster.found(3)
    db = cluster.connect()
    writer = Writer(db)
    for _ in range(3):
        await asyncio.sleep(0.15)
        leader = await cluster.leader()
        await cluster.crash(leader.node_id)
        await cluster.leader()
        await asyncio.sleep(0.1)
        await cluster.start(leader.node_id)
    await writer.stop()
    await cluster.leader()
    await writer.check(db)
    await cluster.converged()


async def test_a_stopping_leader_hands_over_without_an_election_timeout(cluster: Any) -> None:
    await cluster.found(3, election_timeout_ms=1500)
    leader = await cluster.leader()
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    await cluster.stop(leader.node_id)
    await cluster.leader()
    assert loop.time() - began_s < 1.2


async def test_all_members_crash_at_once_and_come_back_with_everything(cluster: Any) -> None:
    await cluster.found(3)
    db = cluster.connect()
    await asyncio.gather(*(db.kv.put(f"k{number}", "v") for number in range(300)))
    for number in (1, 2, 3):
        await cluster.crash(number)
    for number in (1, 2, 3):
        await cluster.start(number)
    await cluster.leader()
    found = await db.kv.range(prefix="k", limit=1000)
    assert len(found.items) == 300
    await cluster.converged()


async def test_grow_from_one_to_three_and_back_to_one_under_load(cluster: Any) -> None:
    await cluster.found(1)
    db = cluster.connect()
    writer = Writer(db)
    for number in (2, 3):
        cluster.joiner(number)
        await cluster.start(number)
        await db.add_member(number, cluster.addresses[number])
        await db.promote(number)
    members = (await db.members())["members"]
    assert [each["role"] for each in members] == ["voter"] * 3
    survivor = 3
    await db.transfer_leader(survivor)
    for number in (1, 2):
        await db.remove_member(number)
        await cluster.stop(number)
    await asyncio.sleep(0.1)
    await writer.stop()
    alone = cluster.connect(survivor)
    await writer.check(alone)
    assert [each["node"] for each in (await alone.members())["members"]] == [survivor]
    with pytest.raises(MembershipError, match="used before"):
        await alone.add_member(1, "127.0.0.1:1")


async def test_membership_changes_that_make_no_sense_are_refused(cluster: Any) -> None:
    await cluster.found(1)
    db = cluster.connect()
    with pytest.raises(MembershipError, match="not a member"):
        await db.promote(9)
    with pytest.raises(MembershipError, match="no voter"):
        await db.remove_member(1)
    with pytest.raises(MembershipError, match=r"used before|a member already"):
        await db.add_member(1, "127.0.0.1:1")
    with pytest.raises(InvalidArgumentError, match="not an endpoint"):
        await db.add_member(2, "nowhere")


async def test_a_member_too_far_behind_gets_a_snapshot_while_clients_write(
    cluster: Any, wait_until: Any
) -> None:
    await cluster.found(1, checkpoint_mib=1)
    db = cluster.connect()
    value = b"x" * 900

    async def fill(prefix: str, count: int) -> None:
        for at in range(0, count, 500):
            await asyncio.gather(*(db.kv.put(f"{prefix}{at + n:06d}", value) for n in range(500)))

    node = cluster.nodes[1]
    # Segments are 16 MiB and only whole ones are cut.
    while node.replica.core.state.log.floor.index == 0:
        await fill("a", 8000)
        await node.checkpoint()
    writer = Writer(db)
    cluster.joiner(2)
    joined = await cluster.start(2)
    await db.add_member(2, cluster.addresses[2])
    await db.promote(2)
    await wait_until(lambda: joined.parts.receiver.installed_count == 1)
    await writer.stop()
    await writer.check(cluster.connect(2, follow_leader=False))
    await cluster.converged()
    # What came as a snapshot survives a crash of the receiver like anything else.
    await cluster.crash(2)
    await cluster.start(2)
    await cluster.leader()
    await writer.check(cluster.connect(2, follow_leader=False))


async def test_changes_asked_for_again_are_done_when_they_are_so(cluster: Any) -> None:
    await cluster.found(1)
    db = cluster.connect()
    cluster.joiner(2)
    await cluster.start(2)
    await db.add_member(2, cluster.addresses[2])
    await db.promote(2)
    admin = (await cluster.leader()).parts.admin
    for method in ("members.add", "members.promote"):
        given = {"node": 2, "address": cluster.addresses[2]}
        with pytest.raises(MembershipError):
            await admin.call(AdminRequest(1, method, given))
        found = await admin.call(AdminRequest(1, method, {**given, "again": True}))
        assert [each["role"] for each in found["members"]] == ["voter", "voter"]
    await db.remove_member(2)
    found = await admin.call(AdminRequest(1, "members.remove", {"node": 2, "again": True}))
    assert len(found["members"]) == 1


async def test_a_transfer_to_nobody_is_refused_for_sure(cluster: Any) -> None:
    await cluster.found(1)
    with pytest.raises(TransferRefusedError) as caught:
        await cluster.connect().transfer_leader(9)
    assert caught.value.definite


async def test_checkpoints_shorten_the_restart_and_keep_the_state(cluster: Any) -> None:
    await cluster.found(1)
    db = cluster.connect()
    await asyncio.gather(*(db.kv.put(f"k{n}", "v") for n in range(100)))
    first = (await db.checkpoint())["index"]
    await db.kv.put("later", "v")
    before = cluster.nodes[1].status()
    await cluster.crash(1)
    node = await cluster.start(1)
    assert node.status()["checkpoint"] == first
    await db.kv.get("later")
    after = node.status()
    assert (after["keys"], after["revision"]) == (before["keys"], before["revision"])


async def test_a_write_at_a_follower_is_refused_there_and_retried_at_the_leader(
    cluster: Any,
) -> None:
    await cluster.found(3)
    follower = (await cluster.followers())[0]
    with pytest.raises(NotLeaderError):
        follower.replica.submit(_put(b"k"), print)
    db = cluster.connect(int(follower.node_id))
    await db.kv.put("k", "v")


def _put(key: bytes) -> Submit:
    items = msgspec.msgpack.encode([Put(key, b"v")])
    return Submit(0, 0, 0, (Run("kv", msgspec.Raw(items)),))


async def test_linearizable_reads_wait_for_a_leader_and_local_ones_do_not(cluster: Any) -> None:
    await cluster.found(3)
    db = cluster.connect()
    await db.kv.put("k", "v")
    await cluster.converged()
    leader = await cluster.leader()
    survivors = [node for node in cluster.nodes.values() if node is not leader]
    await cluster.crash(int(leader.node_id))
    await cluster.crash(int(survivors[0].node_id))
    pinned = cluster.connect(int(survivors[1].node_id), follow_leader=False, timeout=1.0)
    with pytest.raises(QuorateError):
        await pinned.kv.get("k")


async def test_a_number_is_refused_to_a_directory_that_was_wiped(
    cluster: Any, tmp_path: Path, wait_until: Any
) -> None:
    await cluster.found(3)
    leader = await cluster.leader()
    await wait_until(lambda: all(node.pinned(3) for node in cluster.nodes.values()))
    victim = 3 if leader.node_id != 3 else 2
    await cluster.stop(victim)
    (tmp_path / str(victim)).rename(tmp_path / "kept")
    await cluster.start(victim)
    other = cluster.nodes[1 if victim != 1 else 2]
    await wait_until(lambda: "wiped" in other.status()["problems"].get(str(victim), ""))
    wiped = cluster.nodes[victim]
    await wait_until(lambda: any("wiped" in text for text in wiped.status()["problems"].values()))
    assert wiped.replica.leader == 0  # nobody lets it take part
    await cluster.connect(1).kv.put("still", "works")


async def test_a_node_of_another_cluster_is_refused(
    cluster: Any, tmp_path: Path, wait_until: Any
) -> None:
    await cluster.found(1)
    config = NodeConfig(
        node_id=2,
        data=str(tmp_path / "other"),
        listen="127.0.0.1:0",
        cluster="another",
        join=(cluster.addresses[1],),
    )
    with pytest.raises(QuorateError, match="is of cluster 'quorate', not 'another'"):
        await Node(config).start()


async def test_divergence_rings_within_a_heartbeat(cluster: Any, wait_until: Any) -> None:
    await cluster.found(3)
    await cluster.connect().kv.put("k", "v")
    await cluster.converged()
    follower = (await cluster.followers())[0]
    follower.machines._state_hash = b"damaged!"
    await cluster.connect().kv.put("k", "w")
    await wait_until(lambda: follower.replica.divergence.alarms, 2.0)
    assert "state differs" in follower.status()["alarms"][0]
    follower.replica.divergence.alarms.clear()
    for node in cluster.nodes.values():
        node.replica.divergence.alarms.clear()


async def test_lease_reads_are_answered_and_fall_back(cluster: Any) -> None:
    await cluster.found(3, lease_reads=True)
    db = cluster.connect()
    await db.kv.put("k", "v")
    for _ in range(50):
        assert (await db.kv.get("k")).value == b"v"
    leader = await cluster.leader()
    await cluster.crash(int(leader.node_id))
    await db.kv.put("k", "w")
    assert (await db.kv.get("k")).value == b"w"
