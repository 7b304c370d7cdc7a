"""No process outlives a measurement, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from bench import processes
from bench.__main__ import main
from bench.processes import BenchError

ROOT = Path(__file__).resolve().parent.parent.parent
SLEEP = [sys.executable, "-c", "import time; time.sleep(100)"]
#: Ignores SIGTERM; says when it does.
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('ready', flush=True)
time.sleep(100)
"""


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_processes_end_with_the_block(tmp_path: Path) -> None:
    with processes.all_ended():
        left = [processes.start(SLEEP, tmp_path / "log") for _ in range(2)]
        killed = processes.start(SLEEP, tmp_path / "log")
        processes.kill(killed)
    assert [process.returncode for process in left] == [-signal.SIGKILL] * 2
    assert not any(exists(process.pid) for process in left)


def test_processes_end_when_the_block_raises(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), processes.all_ended():
        process = processes.start(SLEEP, tmp_path / "log")
        raise RuntimeError
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_processes_end_when_a_signal_ends_the_measurement(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    script = textwrap.dedent(
        f"""
        import sys, time
        from pathlib import Path
        from bench import __main__, processes
        def run(options):
            with processes.scratch_directory(Path({str(tmp_path)!r})) as directory:
                child = processes.start({SLEEP!r}, directory / "log")
                print(child.pid, flush=True)
                time.sleep(100)
        __main__.run = run
        sys.exit(__main__.main(["durability"]))
        """
    )
    measurement = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True
    )
    with measurement:
        assert measurement.stdout is not None
        child = int(measurement.stdout.readline())
        assert exists(child)
        measurement.send_signal(number)
        assert measurement.wait(10) == status
    assert not exists(child)
    assert list(tmp_path.iterdir()) == []


def test_kill_twice_and_after_the_end(tmp_path: Path) -> None:
    process = processes.start([sys.executable, "-c", ""], tmp_path / "log")
    process.wait(10)
    processes.kill(process)
    processes.kill(process)
    assert process.returncode == 0


def test_stop_kills_what_does_not_obey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_TIMEOUT_S", 0.2)
    log = tmp_path / "log"
    process = processes.start([sys.executable, "-c", STUBBORN], log)
    processes.wait_until(lambda: "ready" in processes.tail(log), 10, "the child")
    assert processes.stop(process) == -signal.SIGKILL


def test_waiting_ends() -> None:
    began = time.monotonic()
    with pytest.raises(BenchError, match=r"waited 0.05 s for godot"):
        processes.wait_until(lambda: False, 0.05, "godot")
    assert time.monotonic() - began < 2


def test_ports_differ() -> None:
    ports = processes.free_ports(20)
    assert len(set(ports)) == 20


def test_scratch_directory_is_removed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), processes.scratch_directory(tmp_path) as directory:
        (directory / "file").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


# --- exit status ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "status"), [({"lost": 0, "passed": True}, 0), ({"passed": False}, 1), ({}, 0)]
)
def test_broken_promises_show_in_the_exit_status(
    content: dict[str, object], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.__main__.run", lambda _options: content)
    report = tmp_path / "report.json"
    assert main(["durability", "--json", str(report)]) == status
    assert report.exists()


def test_what_cannot_be_measured_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--without-quorate", "--peers", "zookeeper"]) == 1
    assert "unknown system 'zookeeper'; there are quorate, etcd" in capsys.readouterr().err
    assert main(["compare", "--workloads", "put@7"]) == 1
    assert main(["failover", "--peers", "pysyncobj"]) == 1
    assert main(["recover", "--keys", "10"]) == 1


def test_a_report_that_could_not_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["durability", "--json", str(tmp_path / "none" / "report.json")])
    assert caught.value.code == 2
