from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jepsen_like.history import NEMESIS, Event
from jepsen_like.processes import report
from jepsen_like.processes.runner import Outcome, Settings
from jepsen_like.verdict import Verdict


def event(process: int | str, kind: Any, time_ms: float, **more: Any) -> Event:
    f = more.pop("f", "add")
    return Event(process=process, type=kind, f=f, time_ns=int(time_ms * 1e6), **more)


def fault(do: str, number: int, time_ms: float) -> Event:
    value = {"id": number, "do": do, "what": "nodes 1 & <2>"}
    return event(NEMESIS, "info", time_ms, f="kill", value=value)


HISTORY = [
    event(0, "invoke", 1),
    fault("begin", 1, 2),
    event(1, "invoke", 3),
    event(0, "ok", 5),
    fault("end", 1, 6),
    fault("begin", 2, 7),
    event(1, "fail", 8, error="no"),
    event(2, "invoke", 9),
    event(2, "info", 2000, error="who knows"),
]


def a_run(verdict: Verdict) -> report.Run:
    counts = {"ok": 1, "fail": 1, "info": 1}
    outcome = Outcome(
        history=HISTORY,
        verdict=verdict,
        parts=(verdict,),
        counts=counts,
        faults={"kill": 2},
        recovery_s=0.5,
    )
    result = {"workload": "small", "system": "stub", "nodes": 3, "seconds": 2.0, "seed": 1}
    result |= {"recovery_s": 0.5, "faults": {"kill": 2}, **counts}
    return report.Run(outcome=outcome, result=result, settings=Settings())


BAD = Verdict(
    checker="x",
    valid=False,
    problems=("read </script><b>7", "second"),
    facts={"lost": 3, "inner": {"deep": "<i>"}, "keys": ["'a'", "'b'"], "none_of_these": []},
    picture="<svg id='counterexample'></svg>",
)


def test_points_and_bands_are_those_of_the_history() -> None:
    found = report.chart(a_run(BAD))
    assert found["points"] == [
        [0.001, 4.0, 0, "add"],
        [0.003, 5.0, 1, "add"],
        [0.009, 1991.0, 2, "add"],
    ]
    spans = [(band["from"], band["to"]) for band in found["bands"]]
    assert spans == [(0.002, 0.006), (0.007, 2.0)]  # the second never ended


def test_the_page_needs_nothing_else_and_holds_everything(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report.write_report(path, a_run(BAD))
    text = path.read_text("utf-8")
    assert "@@" not in text
    assert not re.search(r"(src|href)=|@import|url\(", text)
    assert "counterexample" in text
    assert "<td>&#x27;a&#x27;, &#x27;b&#x27;</td>" in text
    assert "<td>none_of_these</td><td>none</td>" in text
    assert "read &lt;/script&gt;&lt;b&gt;7" in text
    assert text.count("</script>") == 2
    data = text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(data)["bands"][0]["what"] == "nodes 1 & <2>"


def test_the_verdict_is_the_title() -> None:
    for valid, word in ((True, "valid"), (False, "invalid"), ("unknown", "unknown")):
        verdict = Verdict(checker="x", valid=valid)  # type: ignore[arg-type]
        assert f"<title>small on stub: {word}</title>" in report.page(a_run(verdict))
