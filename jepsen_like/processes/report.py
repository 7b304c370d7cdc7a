"""The report of a run: one HTML file that needs nothing else, for a browser, offline.

Python writes what is text (verdict, problems, tables) and the points as JSON; the few lines of
script in ``report_page`` draw them as SVG.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from jepsen_like.history import Event, faults, operations
from jepsen_like.processes.nemesis.stage import BEGIN, END
from jepsen_like.processes.report_page import PAGE
from jepsen_like.processes.runner import Outcome, Settings

#: Of the points drawn; of a longer history every n-th is.
POINTS_MAX: Final = 40_000
NOTES_MAX: Final = 500
TEXT_MAX: Final = 4000  # of one problem
TYPES: Final = ("ok", "fail", "info")


class Run(msgspec.Struct, frozen=True):
    """What a report tells. *result*: as ``--json`` prints it."""

    outcome: Outcome
    result: Mapping[str, Any]
    settings: Settings


def write_report(path: Path, run: Run) -> None:
    """Write the page to *path*."""
    path.write_text(page(run), "utf-8")


def page(run: Run) -> str:
    """The whole page."""
    result, verdict = run.result, run.outcome.verdict
    word = (
        str(verdict.valid)
        if isinstance(verdict.valid, str)
        else ("invalid", "valid")[verdict.valid]
    )
    heading = f"{result['workload']} on {result['system']}"
    # "<" must not end the script element that holds the data, nor begin a comment in it.
    data = json.dumps(chart(run), separators=(",", ":"), default=str).replace("<", "\\u003c")
    parts = {
        "title": _text(f"{heading}: {word}"),
        "heading": _text(heading),
        "word": word,
        "summary": _summary(run),
        "problems": _problems(verdict.problems),
        "picture": f"<figure>{verdict.picture}</figure>" if verdict.picture else "",
        "facts": _facts(verdict.facts),
        "faults": _faults(run.outcome.faults),
        "events": _events(run.outcome.history),
        "data": data,
    }
    text = PAGE
    for name, part in parts.items():
        text = text.replace(f"@@{name}@@", part)
    return text


# --- points ---------------------------------------------------------------------------------------


def chart(run: Run) -> dict[str, Any]:
    """What the script draws: times in seconds, latencies in milliseconds."""
    found = operations(run.outcome.history)
    end_ns = max((event.time_ns for event in run.outcome.history), default=0)
    step = len(found) // POINTS_MAX + 1
    points = []
    for operation in found[::step]:
        begun, completed = operation.invoked, operation.completed
        ended_ns = end_ns if completed is None else completed.time_ns
        latency_ms = max((ended_ns - begun.time_ns) / 1e6, 0.01)
        points.append(
            [
                round(begun.time_ns / 1e9, 3),
                round(latency_ms, 2),
                TYPES.index(operation.outcome),
                begun.f,
            ]
        )
    return {
        "points": points,
        "step": step,
        "bands": bands(run.outcome.history, end_ns / 1e9),
        "end": end_ns / 1e9,
        "workers": run.settings.workers,
    }


def bands(history: Sequence[Event], end_s: float) -> list[dict[str, Any]]:
    """Faults as spans: kind, what, from, to; one that never ended lasts to *end_s*."""
    spans: dict[int, dict[str, Any]] = {}
    for event in faults(history):
        value = event.value if isinstance(event.value, dict) else {}
        at_s = round(event.time_ns / 1e9, 3)
        if value.get("do") == BEGIN:
            spans[value["id"]] = {
                "kind": event.f,
                "what": value["what"],
                "from": at_s,
                "to": round(end_s, 3),
            }
        elif value.get("do") == END and value["id"] in spans:
            spans[value["id"]]["to"] = at_s
    return list(spans.values())


# --- text -----------------------------------------------------------------------------------------


def _text(value: object) -> str:
    shown = str(value)
    if len(shown) > TEXT_MAX:
        shown = shown[:TEXT_MAX] + " …"
    return html.escape(shown)


def _summary(run: Run) -> str:
    result = run.result
    done = result["ok"] + result["fail"] + result["info"]
    tiles = (
        ("operations", f"{done:,}"),
        ("ok", f"{result['ok']:,}"),
        ("failed", f"{result['fail']:,}"),
        ("unknown", f"{result['info']:,}"),
        ("faults", f"{sum(result['faults'].values()):,}"),
        ("recovered in", f"{result['recovery_s']} s"),
        ("nodes", result["nodes"]),
        ("under faults", f"{result['seconds']:g} s"),
        ("seed", result["seed"]),
    )
    return "".join(f"<div><b>{_text(value)}</b><i>{name}</i></div>" for name, value in tiles)


def _problems(problems: Sequence[str]) -> str:
    if not problems:
        return ""
    items = "".join(f"<li><pre>{_text(problem)}</pre></li>" for problem in problems)
    return f"<section><h2>What is wrong</h2><ol class=problems>{items}</ol></section>"


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{_text(k)}</td><td>{_text(v)}</td></tr>" for k, v in _flat(facts))
    return f"<table><tbody>{rows}</tbody></table>" if rows else ""


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}: ")
        elif isinstance(value, list | tuple):
            found.append((f"{prefix}{name}", ", ".join(str(each) for each in value) or "none"))
        else:
            found.append((f"{prefix}{name}", value))
    return found


def _faults(counts: Mapping[str, int]) -> str:
    rows = "".join(
        f"<tr><td><span class=dot data-kind='{_text(kind)}'></span>{_text(kind)}</td>"
        f"<td class=n>{count}</td></tr>"
        for kind, count in sorted(counts.items())
    )
    return f"<table><tbody>{rows}</tbody></table>" if rows else "<p>None.</p>"


def _events(history: Sequence[Event]) -> str:
    told = faults(history)
    rows = []
    for event in told[:NOTES_MAX]:
        value = event.value if isinstance(event.value, dict) else {}
        rows.append(
            f"<tr><td class=n>{event.time_ns / 1e9:.2f}</td><td>{_text(event.f)}</td>"
            f"<td>{_text(value.get('do', ''))}</td><td>{_text(value.get('what', ''))}</td></tr>"
        )
    more = f"<p>and {len(told) - NOTES_MAX} more</p>" if len(told) > NOTES_MAX else ""
    return (
        "<table><thead><tr><th>s</th><th>fault</th><th></th><th></th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>{more}"
    )
