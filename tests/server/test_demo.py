"""The demo on small texts: what it reads, what it prints, and that it can fail."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from quorate.base.limits import KEY_BYTES_MAX
from quorate.errors import InvalidArgumentError
from quorate.server.demo import Demo, DemoReport
from quorate.server.local_cluster import LocalNode
from quorate.server.texts import default_texts, lines_of, read_lines, text_files


def demo(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "quorate", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.processes
def test_nothing_is_lost_to_a_killed_leader(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("".join(f"line {number % 2000}\n\n" for number in range(2500)))
    process = demo("--input", str(text), "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert (found["nodes"], found["lines"], found["keys"]) == (3, 2500, 2000)
    assert (found["acknowledged"], found["lost"], found["verified"]) == (2000, 0, True)
    assert (found["leader_kills"], len(found["failover_ms"])) == (1, 1)
    assert found["puts_per_s"] > 0


@pytest.mark.processes
@pytest.mark.shared
def test_a_person_gets_a_sentence_and_no_nodes_stay(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("a\nb\nc\n")
    process = demo("--input", str(text), TMPDIR=str(tmp_path))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Nothing lost." in out
    assert list(tmp_path.glob("quorate-*")) == []


@pytest.mark.processes
@pytest.mark.shared
def test_a_signal_ends_the_demo_and_its_nodes(tmp_path: Path) -> None:
    process = demo("--json", TMPDIR=str(tmp_path))
    while not (made := list(tmp_path.glob("quorate-*/node-1.log"))):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert not made[0].exists()


@pytest.mark.processes
@pytest.mark.shared
async def test_a_lost_key_is_found_and_the_evidence_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Demo._read_all

    async def forgetful(self: Demo, node: LocalNode) -> dict[bytes, bytes]:
        held = await whole(self, node)
        if node.number == 2:
            del held[b"b"]
        return held

    monkeypatch.setattr(Demo, "_read_all", forgetful)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "text").write_text("a\nb\nc\n")
    run = Demo([tmp_path / "text"], kills=0)
    report = await run.run()
    assert (report.lost, report.verified, report.passed) == (1, False, False)
    (kept,) = list(tmp_path.glob("quorate-*"))  # noqa: ASYNC240  # nothing else runs
    assert str(kept) in run.state.events[-1]
    assert (kept / "node-2.log").read_text()


def test_a_text_without_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(InvalidArgumentError, match="0 different lines"):
        Demo([tmp_path / "empty"])._read_text()
    with pytest.raises(InvalidArgumentError, match="cannot go on without one"):
        Demo([], nodes=2)


@pytest.mark.parametrize(
    ("wrong", "passed"),
    [
        ({}, True),
        ({"lost": 1}, False),
        ({"verified": False}, False),
        ({"acknowledged": 9}, False),
    ],
)
def test_only_a_whole_success_passes(wrong: dict[str, int], *, passed: bool) -> None:
    found = {
        "nodes": 3, "lines": 10, "keys": 10, "acknowledged": 10, "lost": 0, "leader_kills": 1,
        "failover_ms": [1.0], "verified": True, "puts_per_s": 1.0, "seconds": 1.0,
    }  # fmt: skip
    assert DemoReport(**{**found, **wrong}).passed is passed  # type: ignore[arg-type]


# --- texts ----------------------------------------------------------------------------------------


def test_the_default_text_has_tens_of_thousands_of_lines() -> None:
    keys = {line.key for line in read_lines(default_texts())}
    assert 10_000 < len(keys) < 100_000


def test_lines_keep_their_bytes_and_places() -> None:
    text = b"a\r\n\n  b \nc\xff"
    found = list(lines_of(io.BytesIO(text), "f"))
    assert [(line.key, line.place) for line in found] == [
        (b"a", "f:1"),
        (b"  b ", "f:3"),
        (b"c\xff", "f:4"),
    ]
    assert found[-1].end == len(text)
    assert not any(line.shortened for line in found)


@pytest.mark.parametrize("length", [KEY_BYTES_MAX, KEY_BYTES_MAX + 1, 65_535, 65_536, 200_000])
def test_long_lines_are_shortened_and_stay_different(length: int) -> None:
    text = b"x" * length + b"\n" + b"x" * (length + 1) + b"\nshort"
    first, second, third = lines_of(io.BytesIO(text), "f")
    assert first.key != second.key
    assert len(first.key) <= KEY_BYTES_MAX
    assert len(second.key) == KEY_BYTES_MAX
    assert second.shortened
    assert first.shortened is (length > KEY_BYTES_MAX)
    assert (third.key, third.place) == (b"short", "f:3")
    # The same line gives the same key, with whatever line end and whatever follows.
    again = next(iter(lines_of(io.BytesIO(b"x" * length), "g")))
    assert again.key == first.key


def test_folders_are_read_sorted_without_binaries(tmp_path: Path) -> None:
    for name, content in (("b/2", b"2\n"), ("a", b"1\n"), (".h", b"h\n"), ("c.bin", b"\0")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    names = [str(file.relative_to(tmp_path)) for file in text_files(tmp_path)]
    assert names == ["a", "b/2"]
    (tmp_path / "none").mkdir()
    with pytest.raises(InvalidArgumentError, match="holds no text files"):
        text_files(tmp_path / "none")
