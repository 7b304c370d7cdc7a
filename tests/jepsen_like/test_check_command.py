"""`check` on stored histories, and the EDN that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from jepsen_like.cli import main
from jepsen_like.edn import event_to_edn, to_edn
from jepsen_like.errors import HistoryError
from jepsen_like.history import Event, write_history
from jepsen_like.workloads import WORKLOADS
from tests.jepsen_like.histories import at_once, history, run_register, sequential

STALE = sequential((0, "write", 1, "ok", 1), (0, "write", 2, "ok", 2), (1, "read", None, "ok", 1))


def check(path: Path, events: list[Event], *more: str, workload: str = "cas-register") -> int:
    write_history(path / "history.jsonl", events)
    return main(["check", str(path / "history.jsonl"), "--workload", workload, *more])


def test_valid_is_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, run_register(Random(1), 100, 4)) == 0
    assert "valid (linearizable cas-register" in capsys.readouterr().out


def test_invalid_is_1_and_has_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "picture.svg"
    assert check(tmp_path, STALE, "--picture", str(picture)) == 1
    said = capsys.readouterr().out
    assert "INVALID" in said
    assert "no order explains 3 operations" in said
    assert picture.read_text("utf-8").startswith("<svg xmlns=")
    assert check(tmp_path, STALE[:4], "--picture", str(tmp_path / "none.svg")) == 0
    assert "nothing to draw" in capsys.readouterr().out
    assert not (tmp_path / "none.svg").exists()


def test_unknown_is_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, sequential((0, "add", 1, "ok", 1)), workload="set") == 3
    assert "unknown" in capsys.readouterr().out


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, at_once("rx ay1", "ry ax1"), "--json", workload="append") == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["valid"] is False
    assert shown["facts"]["anomalies"] == {"G2-item": 1}
    assert shown["events"] == 4


GARBAGE = [
    b"\xff\xfe\x00",
    b"not json\n",
    b"[1, 2]\n",
    b'{"process":0,"type":"ok","f":"read","time_ns":1}\n',
    b'{"process":0,"type":"gone","f":"read","time_ns":1}\n',
    b'{"process":0,"type":"invoke","f":"txn","value":[[{}]],"time_ns":1}\n',
    b'{"process":0,"type":"invoke","f":"cas","value":{"a":1},"time_ns":1}\n',
    b'{"process":0,"type":"invoke","f":"write","value":' + b"[" * 500 + b"]" * 500
    + b',"time_ns":1}\n',
]  # fmt: skip


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("text", GARBAGE)
def test_garbage_is_2_and_a_sentence(
    text: bytes, workload: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "history.jsonl").write_bytes(text)
    assert main(["check", str(tmp_path / "history.jsonl"), "--workload", workload]) == 2
    assert capsys.readouterr().err.startswith("jepsen_like: ")


def test_wrong_calls_are_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none"), "--workload", "set"]) == 2
    assert check(tmp_path, STALE, "--edn", str(tmp_path / "no" / "x.edn")) == 2
    assert check(tmp_path, STALE, "--picture", str(tmp_path / "no" / "x.svg")) == 2
    assert main(["check", str(tmp_path), "--workload", "nothing"]) == 2
    said = capsys.readouterr().err
    assert "No such file" in said
    assert "no workload 'nothing'" in said


def test_edn_of_keyed_operations(tmp_path: Path) -> None:
    events = history(
        (0, "invoke", "read", None, "x"),
        (0, "ok", "read", 3, "x"),
        (0, "invoke", "cas", [3, 4], "x"),
        (0, "fail", "cas", "differs", "x"),
        (1, "invoke", "write", 5, "x"),
        (1, "info", "write", 5, "x"),
    )
    assert check(tmp_path, events, "--edn", str(tmp_path / "history.edn")) == 1
    assert (tmp_path / "history.edn").read_text("utf-8").splitlines() == [
        '{:index 0, :process 0, :type :invoke, :f :read, :value ["x" nil], :time 0}',
        '{:index 1, :process 0, :type :ok, :f :read, :value ["x" 3], :time 1}',
        '{:index 2, :process 0, :type :invoke, :f :cas, :value ["x" [3 4]], :time 2}',
        '{:index 3, :process 0, :type :fail, :f :cas, :value ["x" [3 4]], :time 3}',
        '{:index 4, :process 1, :type :invoke, :f :write, :value ["x" 5], :time 4}',
        '{:index 5, :process 1, :type :info, :f :write, :value ["x" 5], :time 5}',
    ]


def test_edn_of_transactions_faults_and_errors() -> None:
    steps = [["append", "x", 1], ["r", "y", [1, 2]], ["r", "z", None]]
    event = Event(process=2, type="ok", f="txn", value=steps, time_ns=7, node=1)
    assert event_to_edn(event, 9) == (
        "{:index 9, :process 2, :type :ok, :f :txn, "
        ':value [[:append "x" 1] [:r "y" [1 2]] [:r "z" nil]], :time 7, :node 1}'
    )
    event = Event(process="nemesis", type="info", f="kill", value=[0], time_ns=7, error='a"b\n')
    assert event_to_edn(event, 0) == (
        "{:index 0, :process :nemesis, :type :info, :f :kill, :value [0], :time 7, "
        ':error "a\\"b\\n"}'
    )


@pytest.mark.parametrize(
    ("value", "edn"),
    [
        (None, "nil"),
        (True, "true"),
        (-1.5, "-1.5"),
        ('say "\\"', '"say \\"\\\\\\""'),
        ({"from": 0, "to": 1}, "{:from 0, :to 1}"),
        ({"0": 10, "-1": [], "a b": {}}, '{0 10, -1 [], "a b" {}}'),
    ],
)
def test_edn_values(value: object, edn: str) -> None:
    assert to_edn(value) == edn


def test_edn_has_a_bottom() -> None:
    deep: list[object] = []
    for _level in range(100):
        deep = [deep]
    with pytest.raises(HistoryError, match="deeper"):
        to_edn(deep)
