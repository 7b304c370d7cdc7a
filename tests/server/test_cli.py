"""The command line: what it prints, what it refuses, and with which exit status."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from quorate.server.cli import main
from quorate.server.local_cluster import LocalCluster, free_ports


class Said(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Said]


@pytest.fixture
def run(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs one command line in this process."""
    for name in ("QUORATE_ENDPOINTS", "QUORATE_CONFIG", "QUORATE_NODE_ID", "QUORATE_DATA"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str, stdin: bytes = b"") -> Said:
        monkeypatch.setattr(sys, "stdin", _Stdin(stdin))
        status = main(arguments)
        out, err = capsysbinary.readouterr()
        return Said(status, out.decode("utf-8", "replace"), err.decode())

    return call


class _Stdin:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """One node process that founded its own cluster."""
    cluster = LocalCluster(1)
    try:
        asyncio.run(cluster.start())
        yield cluster.endpoints
    finally:
        cluster.close()


@pytest.fixture
def kv(run: Run, endpoint: str) -> Run:
    """Commands of `quorate kv` against an empty store."""

    def call(*arguments: str, stdin: bytes = b"") -> Said:
        return run("kv", *arguments, "--endpoints", endpoint, stdin=stdin)

    call("del", "", "--prefix")
    return call


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["srve"], "No such command 'srve'", id="unknown command"),
        pytest.param(["kv", "put"], "Missing argument", id="missing argument"),
        pytest.param(["kv", "put", "k", "v", "--nope"], "No such option", id="unknown option"),
        pytest.param(["serve"], "node_id is not set: give --id", id="serve needs a number"),
        pytest.param(["serve", "--id", "x"], "'--id'", id="a number is a number"),
        pytest.param(["serve", "--id", "1", "--data", "d", "--listen", "x"], "listen: 'x'", id="x"),
        pytest.param(
            ["serve", "--id", "1", "--data", "d", "--listen", ""], "listen must be set", id="port"
        ),
        pytest.param(["serve", "--config", "no.toml"], "no.toml cannot be read", id="no file"),
        pytest.param(
            ["serve", "--id", "1", "--data", "d", "--log-level", "loud"], "--log-level", id="level"
        ),
        pytest.param(["kv", "get", "k", "-e", "nowhere"], "not an endpoint", id="endpoint"),
        pytest.param(["kv", "get", ""], "at least one byte", id="empty key"),
        pytest.param(["kv", "put", "k" * 5000, "v"], "over the limit of 4096", id="long key"),
        pytest.param(["kv", "get", "k", "--timeout", "0"], "timeout", id="no time"),
        pytest.param(["kv", "get", "k", "--tls-ca", "x"], "needed together", id="half of TLS"),
        pytest.param(["kv", "load", "/nonexistent"], "neither a file nor", id="no input"),
        pytest.param(["kv", "load", ".", "--format", "xml"], "--format is one of", id="format"),
        pytest.param(["kv", "range", "a", "b", "--prefix"], "not both", id="end and prefix"),
        pytest.param(["members", "add", "4"], "write ID=HOST:PORT", id="no member"),
        pytest.param(["demo", "--input", "/nonexistent"], "neither a file nor", id="no text"),
        pytest.param(["certs", "issue", "king"], "not for 'king'", id="no such certificate"),
        pytest.param(["certs", "issue", "node"], "needs --id", id="a node has a number"),
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(
    run: Run, arguments: list[str], said: str
) -> None:
    result = run(*arguments)
    assert result.status == 2
    assert said in result.err
    assert result.err.startswith("quorate: ")
    assert result.err.count("\n") == 1
    assert result.out == ""


def test_no_arguments_show_the_commands(run: Run) -> None:
    assert "transfer-leader" in run().err
    assert "load" in run("kv").err
    assert "Exit status" in run("--help").out
    assert run("--help").status == 0


def test_version(run: Run) -> None:
    assert run("version").out.startswith("quorate ")
    assert "python" in run("version", "--json").json


@pytest.mark.parametrize("arguments", [["kv", "get", "k"], ["members", "list"], ["status"]])
def test_a_cluster_that_is_not_there_is_status_1(run: Run, arguments: list[str]) -> None:
    (port,) = free_ports(1)
    where = ("--endpoints", f"127.0.0.1:{port}", "--timeout", "0.3")
    result = run(*arguments, *where)
    assert (result.status, result.err.count("\n")) == (1, 1)
    as_json = run(*arguments, *where, "--json")
    assert as_json.status == 1
    error = json.loads(as_json.err)["error"]
    assert (error["code"], error["definite"]) == ("unavailable", True)


def test_without_its_libraries_it_says_how_to_get_them(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name}", name="typer")

    monkeypatch.setattr("quorate.server.cli.importlib.import_module", missing)
    result = run("version")
    assert result.status == 1
    assert "pip install 'quorate[cli]'" in result.err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (OSError(13, "Permission denied", "f"), 1, "f: Permission denied"),
        (KeyError("x"), 70, "a bug in quorate, please report it: KeyError"),
    ],
)
def test_what_nobody_foresaw_is_one_line_too(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, said: str
) -> None:
    def dispatch(_arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr("quorate.server.cli_app.dispatch", dispatch)
    result = run("version")
    assert result.status == status
    assert said in result.err
    assert result.err.count("\n") == 1


# --- certificates ---------------------------------------------------------------------------------


def test_certificates(run: Run, tmp_path: Path) -> None:
    place = ("--dir", str(tmp_path / "certs"))
    assert run("certs", "init", *place, "--cluster", "test").status == 0
    node = run("certs", "issue", "node", "--id", "3", "--host", "db3", *place, "--json").json
    assert Path(node["cert"]).name == "node-3.crt"
    client = run("certs", "issue", "client", "--name", "billing", *place)
    assert "billing.crt" in client.out
    again = run("certs", "init", *place)
    assert again.status == 2
    assert "exists already" in again.err


# --- keys and values ------------------------------------------------------------------------------


@pytest.mark.processes
def test_one_key_from_put_to_delete(kv: Run, tmp_path: Path) -> None:
    assert kv("put", "k", "v").out.startswith("revision ")
    assert kv("get", "k") == Said(0, "v\n", "")
    assert kv("get", "k", "--local") == Said(0, "v\n", "")
    item = kv("get", "k", "--json").json["item"]
    assert (item["key"], item["value"], item["version"]) == ("k", "v", 1)
    assert kv("put", "k", "-", stdin=b"from\nstdin").status == 0
    assert kv("get", "k").out == "from\nstdin\n"
    (tmp_path / "v").write_bytes(b"\xff")
    assert kv("put", "k", "--file", str(tmp_path / "v"), "--json").json["revision"] > 0
    assert kv("get", "k", "--json").json["item"]["value_base64"] == "/w=="
    assert kv("del", "k").out.startswith("1 removed")
    assert kv("del", "k").status == 4
    gone = kv("get", "k")
    assert (gone.status, gone.out, gone.err) == (4, "", "quorate: no key k\n")
    assert kv("get", "k", "--json").json == {"item": None}


@pytest.mark.processes
def test_ranges(kv: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("a", "b1", "b2", "b3", "c"):
        kv("put", key, f"v-{key}")
    assert kv("range").out == "a\tv-a\nb1\tv-b1\nb2\tv-b2\nb3\tv-b3\nc\tv-c\n"
    assert kv("range", "b", "--prefix", "--keys-only").out == "b1\nb2\nb3\n"
    assert kv("range", "b1", "b3", "--keys-only").out == "b1\nb2\n"
    assert kv("range", "--reverse", "--limit", "2", "--keys-only").out == "c\nb3\n"
    assert kv("range", "b", "--prefix", "--count").out == "3\n"
    assert kv("range", "--count", "--json").json == {"count": 5}
    lines = kv("range", "b1", "b2", "--json").out.splitlines()
    assert json.loads(lines[0])["value"] == "v-b1"
    assert "value" not in kv("range", "b1", "b2", "--json", "--keys-only").json
    # Page by page, forwards and backwards, the same comes out.
    monkeypatch.setattr("quorate.server.cli_kv.RANGE_LIMIT_MAX", 2)
    assert kv("range", "--keys-only").out == "a\nb1\nb2\nb3\nc\n"
    assert kv("range", "--reverse", "--keys-only").out == "c\nb3\nb2\nb1\na\n"
    assert kv("range", "--limit", "3", "--keys-only").out == "a\nb1\nb2\n"
    assert kv("del", "b", "--prefix", "--json").json["count"] == 3
    assert kv("del", "a", "b").out.startswith("1 removed")


@pytest.mark.processes
def test_transactions(kv: Run, tmp_path: Path) -> None:
    claim = {
        "compare": [{"key": "lock", "target": "version", "operand": 0}],
        "then": [{"op": "put", "key": "lock", "value": "me"}],
        "otherwise": [{"op": "get", "key": "lock"}, {"op": "range", "prefix": "lo"}],
    }
    file = tmp_path / "claim.json"
    file.write_text(json.dumps(claim))
    assert kv("txn", str(file), "--json").json["succeeded"] is True
    second = kv("txn", str(file), "--json")
    assert second.status == 4
    got, ranged = second.json["results"]
    assert got["item"]["value"] == ranged["items"][0]["value"] == "me"
    assert "otherwise" in kv("txn", stdin=file.read_bytes()).out
    others = [
        {"op": "increment", "key": "n", "delta": 5},
        {"op": "delete", "key": "lock", "previous": True},
        {"op": "delete-range", "prefix": "x"},
    ]
    done = kv("txn", "--json", stdin=json.dumps({"then": others}).encode()).json["results"]
    assert done[0]["value"] == 5
    assert done[1]["previous"][0]["value"] == "me"
    assert done[2]["count"] == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "is no transaction"),
        (b"[" * 100_000, "is no transaction"),
        (b'{"thne": []}', "unknown field `thne`"),
        (b'{"then": [{"op": "jump"}]}', "Invalid value 'jump'"),
        (b'{"then": [{"op": "get"}]}', "give key or key_base64"),
        (b'{"then": [{"op": "get", "key_base64": "?"}]}', "is not base64"),
        (b'{"compare": [{"key": "k", "target": "value", "operand": 1}]}', "must be bytes"),
        (b'{"then": [{"op":"put","key":"k","value":"1"},{"op":"delete","key":"k"}]}', "one key"),
    ],
)
def test_a_wrong_transaction_is_refused_before_it_is_sent(run: Run, text: bytes, said: str) -> None:
    result = run("kv", "txn", "--timeout", "0.1", stdin=text)
    assert said in result.err
    assert result.status == 2


@pytest.mark.processes
def test_dump_and_load_give_the_same_store(kv: Run, tmp_path: Path) -> None:
    pairs = [{"key": "k1", "value": "v\n1"}, {"key_base64": "/w==", "value_base64": "AP8="}]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs) + "\n\n")
    loaded = kv("load", str(tmp_path / "in.jsonl"), "--json").json
    assert (loaded["loaded"], loaded["skipped"]) == (2, 0)
    assert [json.loads(line) for line in kv("dump").out.splitlines()] == pairs
    out = str(tmp_path / "out.jsonl")
    assert kv("dump", "--output", out).out == f"2 dumped to {out}\n"
    taken = kv("dump", "--output", out)
    assert (taken.status, taken.err) == (1, f"quorate: {out}: File exists\n")
    kv("del", "", "--prefix")
    assert kv("load", "-", "--format", "json", stdin=Path(out).read_bytes()).status == 0
    assert [json.loads(line) for line in kv("dump").out.splitlines()] == pairs
    assert kv("dump", "--prefix", "k").out.count("\n") == 1


@pytest.mark.processes
def test_any_text_can_be_loaded(kv: Run, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / ".hidden").mkdir(parents=True)
    (folder / ".hidden" / "x.txt").write_text("hidden\n")
    (folder / "binary").write_bytes(b"a\0b\n")
    (folder / "a.txt").write_bytes(b"one\r\n\ntwo\n" + b"x" * 5000 + b"\n" + b"y" * 70_000)
    result = kv("load", str(folder), "--json", "--prefix", "t/")
    assert result.status == 1
    assert "2 lines were passed over" in result.err
    assert (result.json["loaded"], result.json["skipped"]) == (2, 2)
    assert result.json["first_skipped"] == f"{folder}/a.txt:4 is too long for a key"
    place = f"{folder}/a.txt"
    assert kv("range").out == f"t/one\t{place}:1\nt/two\t{place}:3\n"


@pytest.mark.processes
def test_a_wrong_line_stops_a_load_and_is_named(kv: Run, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"key": "k", "value": "v"}\n{"key": 1}\n')
    result = kv("load", str(tmp_path / "in.jsonl"))
    assert result.status == 2
    assert f"{tmp_path}/in.jsonl:2" in result.err


# --- operators' calls -----------------------------------------------------------------------------


@pytest.mark.processes
def test_status_and_members(run: Run, endpoint: str) -> None:
    where = ("--endpoints", endpoint)
    status = run("status", *where, "--json")
    assert status.status == 0
    assert status.json["leader"] == 1
    assert status.json["nodes"][0]["role"] == "leader"
    assert "node 1 leads" in run("status", *where).out
    assert run("members", "list", *where).out == f"1\t{endpoint}\tvoter\n"
    assert run("members", "list", *where, "--json").json["joint"] is False
    assert run("snapshot", *where, "--json").json["index"] > 0
    assert run("snapshot", *where).out.startswith("checkpoint at log index")
    refused = run("members", "promote", "9", *where)
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert "node 9 is not a member" in refused.err
