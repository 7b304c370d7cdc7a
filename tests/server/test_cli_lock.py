"""`quorate lock`, `quorate elect`, `quorate locks` and `quorate lease`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from quorate import Fence, sync
from quorate.client.elections import Leader
from quorate.errors import FencedError
from quorate.server.cli import main
from quorate.server.local_cluster import LocalCluster

pytestmark = pytest.mark.shared

WAIT_S = 20.0


class Said(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    cluster = LocalCluster(1)
    try:
        asyncio.run(cluster.start())
        yield cluster.endpoints
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def db(endpoint: str) -> Iterator[sync.Database]:
    with sync.connect(endpoint) as made:
        yield made


def begin(endpoint: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "quorate", *arguments],
        env={**os.environ, "QUORATE_ENDPOINTS": endpoint},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def end(process: subprocess.Popen[str]) -> Said:
    try:
        out, err = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
    return Said(process.returncode, out, err)


def run(endpoint: str, *arguments: str) -> Said:
    return end(begin(endpoint, *arguments))


@pytest.fixture
def here(
    endpoint: str, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """Runs one command line in this process, which is faster."""
    monkeypatch.setenv("QUORATE_ENDPOINTS", endpoint)

    def call(*arguments: str) -> Said:
        status = main(arguments)
        out, err = capsysbinary.readouterr()
        return Said(status, out.decode(), err.decode())

    return call


def until(what: Callable[[], object]) -> None:
    ends = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < ends, "it did not come true in time"
        time.sleep(0.02)


def python(code: str) -> list[str]:
    return ["--", sys.executable, "-c", code]


def test_a_command_runs_under_a_lock_and_knows_its_token(endpoint: str, db: sync.Database) -> None:
    show = "import os; print(os.environ['QUORATE_LOCK_NAME'], os.environ['QUORATE_LOCK_TOKEN'])"
    first = run(endpoint, "lock", "a/lock", *python(show))
    second = run(endpoint, "lock", "a/lock", *python(show + "; raise SystemExit(7)"))
    assert (first.status, second.status) == (0, 7)
    tokens = [int(said.out.split()[1]) for said in (first, second)]
    assert first.out.split()[0] == "a/lock"
    assert 0 < tokens[0] < tokens[1]
    assert db.lock("a/lock").status().kind == ""


def test_who_will_not_wait_hears_that_it_is_held(
    here: Callable[..., Said], endpoint: str, db: sync.Database
) -> None:
    with db.lock("held"):
        for wait in ("0", "0.2"):
            said = here("lock", "held", "--wait", wait, *python("print('ran')"))
            assert said == Said(4, "", "quorate: lock held is held by another\n")
    assert run(endpoint, "lock", "held", "--wait", "5", *python("print('ran')")).out == "ran\n"


def test_what_cannot_be_run_is_said_and_the_lock_is_free(
    here: Callable[..., Said], db: sync.Database
) -> None:
    said = here("lock", "odd", "--", "/does/not/exist")
    assert (said.status, said.err) == (127, "quorate: /does/not/exist: no such command\n")
    assert here("lock", "odd", "--", "/").status == 126
    assert here("lock", "odd", "--ttl", "0", "--", "true").status == 2
    assert here("lock", "odd", "--kill-after", "99", "--", "true").status == 2
    assert here("lock", "odd").status == 2
    assert db.lock("odd").status().kind == ""


STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"%d\\n" % os.getpid())  # at once, or the two lines could mix
time.sleep(60)
"""


def test_a_command_whose_lock_is_lost_is_stopped_with_all_it_started(
    endpoint: str, db: sync.Database
) -> None:
    process = begin(endpoint, "lock", "lost", "--ttl", "4", *python(STUBBORN))
    assert process.stdout is not None
    children = [int(process.stdout.readline()) for _ in range(2)]
    (holder,) = db.lock("lost").status().holders
    db._run(lambda twin: twin.revoke_lease(holder.lease))
    said = end(process)
    assert said.status == 6
    assert "was lost" in said.err
    assert "was revoked" in said.err
    for child in children:
        until(lambda child=child: not _runs(child))  # type: ignore[misc]


def _runs(process: int) -> bool:
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
        return state != "Z"
    return False


def test_signals_go_to_the_command(endpoint: str) -> None:
    ready = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(9));"
    process = begin(
        endpoint, "lock", "sig", *python(ready + "print(1, flush=True); time.sleep(60)")
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert end(process).status == 9
    process = begin(
        endpoint, "lock", "sig", *python("print(1, flush=True); import time; time.sleep(9)")
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert end(process).status == 128 + signal.SIGTERM


def test_a_holder_stopped_beyond_its_ttl_is_replaced_and_its_fenced_write_refused(
    here: Callable[..., Said], endpoint: str, db: sync.Database
) -> None:
    """The whole story of fencing, with real processes and real signals."""
    talk = "import os, time; print(os.environ['QUORATE_LOCK_TOKEN'], flush=True); time.sleep(60)"
    first = begin(endpoint, "lock", "story", "--ttl", "1", *python(talk))
    assert first.stdout is not None
    token = int(first.stdout.readline())
    db.kv.put("story", "first", fence=Fence("locks", b"story", token))
    first.send_signal(signal.SIGSTOP)
    try:
        second = begin(endpoint, "lock", "story", "--ttl", "1", *python(talk))
        assert second.stdout is not None
        later = int(second.stdout.readline())
        assert later > token
        db.kv.put("story", "second", fence=Fence("locks", b"story", later))
    finally:
        first.send_signal(signal.SIGCONT)
    with pytest.raises(FencedError):
        db.kv.put("story", "first again", fence=Fence("locks", b"story", token))
    said = here("kv", "put", "story", "first again", "--fence", f"story:{token}")
    assert said.status == 1
    assert here("kv", "put", "story", "second", "--fence", f"story:{later}").status == 0
    assert here("kv", "put", "story", "x", "--fence", "story").status == 2
    assert end(first).status == 6
    second.send_signal(signal.SIGTERM)
    end(second)
    item = db.kv.get("story")
    assert item is not None
    assert item.value == b"second"


def test_a_leader_runs_its_command_again_after_a_loss(endpoint: str, db: sync.Database) -> None:
    talk = "import os, time; print(os.environ['QUORATE_EPOCH'], flush=True); time.sleep(60)"
    process = begin(endpoint, "elect", "chief", "--value", "me", "--ttl", "2", *python(talk))
    assert process.stdout is not None
    first = int(process.stdout.readline())
    assert db.election("chief").leader() == Leader(b"me", first)
    (holder,) = db.election("chief").status().holders
    db._run(lambda twin: twin.revoke_lease(holder.lease))
    second = int(process.stdout.readline())
    assert second > first
    process.send_signal(signal.SIGTERM)
    assert end(process).status == 128 + signal.SIGTERM
    assert db.election("chief").leader() is None


def test_a_leader_may_be_content_with_once(endpoint: str, db: sync.Database) -> None:
    process = begin(
        endpoint,
        "elect",
        "chief",
        "--once",
        *python("print(1, flush=True); import time; time.sleep(60)"),
    )
    assert process.stdout is not None
    process.stdout.readline()
    (holder,) = db.election("chief").status().holders
    db._run(lambda twin: twin.revoke_lease(holder.lease))
    assert end(process).status == 6
    assert run(endpoint, "elect", "chief", *python("raise SystemExit(3)")).status == 3


def test_operators_see_what_is_locked(here: Callable[..., Said], db: sync.Database) -> None:
    with db.lock("one") as lock, db.election("two", "me"):
        listed = here("locks").out.splitlines()
        assert listed[0].startswith(f"one\tlock\ttoken {lock.token} lease ")
        assert listed[1].startswith("two\telection\t")
        shown = json.loads(here("locks", "two", "--json").out)
        assert shown["first_holders"][0]["value"] == "me"
        assert here("locks", "one").status == 0
    assert here("locks", "one").status == 4
    assert here("locks", "one", "--json").status == 4


def test_leases_by_hand(here: Callable[..., Said], endpoint: str) -> None:
    lease = here("lease", "grant", "--ttl", "30", "--name", "mine").out.strip()
    assert here("lease", "renew", lease).out == f"lease {lease} renewed\n"
    assert here("lease", "show", lease).out.startswith(f"{lease}\tttl 30 s\t")
    listed = here("lease", "list", "--json").out.splitlines()
    assert json.loads(listed[-1])["name"] == "mine"
    keeper = begin(endpoint, "lease", "keep", lease)
    assert keeper.stdout is not None
    assert keeper.stdout.readline() == f"lease {lease} is kept alive\n"
    assert here("lease", "revoke", lease).status == 0
    keeper.send_signal(signal.SIGINT)
    assert end(keeper).status == 130
    for what in ("renew", "revoke", "show", "keep"):
        said = here("lease", what, lease)
        assert said.status == 4
        assert "was revoked or has run out" in said.err
    assert json.loads(here("lease", "show", lease, "--json").out) == {"lease": None}
