"""`quorate crdt`: what it prints, what it refuses, and with which exit status."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from quorate.server.cli import main
from tests.client.fake_cluster import FakeCluster, fake_cluster


class Said(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Said]


@pytest.fixture(scope="module")
def cluster() -> Iterator[FakeCluster]:
    """A fake cluster on a loop of its own thread."""
    ready, end, found = threading.Event(), threading.Event(), []

    async def serve() -> None:
        async with fake_cluster() as made:
            found.append(made)
            ready.set()
            await asyncio.to_thread(end.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait()
    yield found[0]
    end.set()
    thread.join()


@pytest.fixture
def run(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(line: str, *arguments: str) -> Said:
        words = ["crdt", *line.split(), *arguments, "--endpoints", cluster.endpoints]
        status = main(words)
        return Said(status, *capsys.readouterr())

    return call


def test_counters(run: Run) -> None:
    assert run("counter get visits") == Said(0, "0\n", "")
    assert run("counter incr visits 5") == Said(0, "done (causal)\n", "")
    assert run("counter decr visits").status == 0
    assert run("counter get visits").out == "4\n"
    told = run("counter incr visits --json --level eventual").json[0]
    assert told["level"] == "eventual"
    assert told["token"].startswith("q2:fake:0:1.1.")
    assert run("counter get visits --json --after", told["token"]).json[0]["value"] == 5
    assert run("counter clear visits").status == 0
    assert run("counter incr seats 3 --kind BoundedCounter").status == 0
    refused = run("counter decr seats 4 --kind BoundedCounter")
    assert refused.status == 1
    assert refused.err.startswith("quorate: this takes 4 rights, 3 are here")
    assert run("counter transfer seats 2 1").status == 0
    assert run("counter rights seats").out.splitlines()[0] == "here\t2"
    assert {"member": 2, "epoch": 1, "amount": 1} in run("counter rights seats --json").json[0][
        "shares"
    ]


def test_sets_and_what_is_typed(run: Run) -> None:
    assert run("set add tags a b").status == 0
    assert run("set add tags --typed", "5", '["x", 1]').status == 0
    assert sorted(run("set members tags").out.splitlines()) == ["5", '["x", 1]', "a", "b"]
    assert sorted(map(str, run("set members tags --json").json)) == ["5", "['x', 1]", "a", "b"]
    assert run("set contains tags a") == Said(0, "true\n", "")
    assert run("set contains tags 5").status == 4, "a text, not the number"
    assert run("set remove tags a").status == 0
    assert run("set count tags").out == "3\n"
    assert run("set clear tags").status == 0
    assert run("set members tags").out == ""


def test_registers_flags_and_maps(run: Run) -> None:
    assert run("register get colour").status == 4
    assert run("register assign colour", "dark red").status == 0
    assert run("register get colour").out == "dark red\n"
    assert run("register assign both x --kind MVRegister").status == 0
    assert run("register get both --kind MVRegister --json").json[0]["value"] == ["x"]
    assert run("flag get on") == Said(4, "off\n", "")
    assert run("flag enable on").status == 0
    assert run("flag get on").out == "on\n"
    assert run("flag disable on").status == 0
    assert run("counter incr cart 2 --key apple").status == 0
    assert run("register assign cart x --key more --key note").status == 0
    assert sorted(run("map get cart").out.splitlines()) == ["apple\t2", 'more\t{"note": "x"}']
    assert {"key": "apple", "value": 2} in run("map get cart --json").json
    assert run("map keys cart --key more").out == "note\n"
    assert run("map remove cart apple").status == 0
    assert run("map keys cart").out == "more\n"
    assert {"name": "cart", "kinds": ["ORMap"]} in run("names --json").json
    assert run("names car").out == "cart\tORMap\n"
    assert run("remove cart").status == 0
    assert run("names car").out == ""
    assert run("register clear colour").status == 0


def test_texts(run: Run) -> None:
    assert run("text get notes") == Said(0, "", "")
    assert run("text append notes", "Hello world\n").status == 0
    assert run("text insert notes 5 ,").status == 0
    assert run("text delete notes 0 1").status == 0
    assert run("text get notes").out == "ello, world\n"
    assert run("text get notes --json").json[0]["value"] == "ello, world\n"
    assert run("text insert notes 99 x").status == 2
    assert run("text append doc x --key body").status == 0
    assert run("map get doc").out == "body\tx\n"
    assert run("text clear notes").status == 0
    assert run("text watch notes --limit 1").out == "\n"


def test_watching(run: Run) -> None:
    assert run("counter watch hits --limit 1").out == "0\n"
    assert run("set watch nothing --limit 1 --json").json == [{"value": []}]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("counter incr c 0", "Invalid value for '[BY]'"),
        ("counter incr c --level weak", "a level is one of"),
        ("counter decr c --kind GCounter", "--kind is one of PNCounter, BoundedCounter"),
        ("counter get c --after nonsense", "is not a session token"),
        ("set add s {oops --typed", "is not JSON"),
        ("set add s 1.5 --typed", "neither an element nor a key"),
        ("set add", "Missing argument"),
    ],
)
def test_wrong_arguments(run: Run, line: str, said: str) -> None:
    refused = run(line)
    assert refused.status == 2
    assert said in refused.err
    assert refused.err.count("\n") == 1


def test_what_the_cluster_refuses(run: Run, cluster: FakeCluster) -> None:
    assert run("counter incr mixed").status == 0
    refused = run("set add mixed x --json")
    assert refused.status == 1
    assert json.loads(refused.err)["error"]["code"] == "type-mismatch"
    cluster.nodes[1].data.unconfirmed = (2, 3)
    unsure = run("counter incr mixed --level strong")
    cluster.nodes[1].data.unconfirmed = ()
    assert unsure.status == 3
    assert "2, 3" in unsure.err
    assert "may have happened" not in unsure.err
