"""A picture of a counterexample: time from left to right, a row for each process, a bar for each
operation. It is one SVG that needs nothing else, so any browser shows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from jepsen_like.checkers.base import show
from jepsen_like.checkers.counterexample import Counterexample
from jepsen_like.checkers.models import NEVER, Call, Model

#: Bars in one picture; a counterexample that could not be made smaller shows its last ones.
BARS_MAX: Final = 80

LEFT_PX: Final = 110
TOP_PX: Final = 64
ROW_PX: Final = 46
BAR_PX: Final = 30
STEP_PX: Final = 56  # between two places in the history, at least
LABEL_PX_MAX: Final = 320  # longer labels are cut off
CHARACTER_PX: Final = 7
#: Of a bar, beside its label: its number, and a margin.
BESIDE_PX: Final = 36
WIDTH_PX_MIN: Final = 620  # for the legend
LEGEND_PX: Final = 84
LINE_PX: Final = 20

#: Only of what is inside: a page that shows the picture has styles of its own.
_STYLE: Final = "".join(
    f".counterexample {rule}"
    for rule in (
        "text{font:13px system-ui,sans-serif;fill:#1b1f24}",
        ".title{font-size:16px;font-weight:600}",
        ".note{fill:#57606a}",
        ".row{stroke:#d0d7de}",
        ".ok{fill:#c8e6c9;stroke:#2e7d32}",
        ".stuck{fill:#ffcdd2;stroke:#c62828}",
        ".unknown{fill:#eceff1;stroke:#78909c;stroke-dasharray:5 4}",
        ".number{fill:#2e7d32}",
        ".number+text{fill:#fff;font-weight:600;font-size:11px}",
    )
)


def draw(model: Model, example: Counterexample, *, title: str) -> str:
    """The SVG. Numbers are the places in the longest order; red is what that order leaves over."""
    calls = example.calls[-BARS_MAX:]
    across = _across(model, calls)
    rows: dict[str, int] = {}
    for call in calls:
        rows.setdefault(str(call.operation.invoked.process), len(rows))
    width = max(*across.values(), WIDTH_PX_MIN, 9 * len(title) + 24) + 12
    height = TOP_PX + ROW_PX * len(rows) + LEGEND_PX
    numbers = {call.start: at for at, call in enumerate(example.longest(), 1)}
    stuck = {call.start for call in example.stuck()}
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" class="counterexample" role="img" ',
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text class="title" x="12" y="26">{escape(title)}</text>',
        *_frame(rows, width),
    ]
    for call in calls:
        left = across[call.start]
        right = across[call.end] if call.certain else width - 12
        top = TOP_PX + ROW_PX * rows[str(call.operation.invoked.process)]
        kind = "stuck" if call.start in stuck else ("ok" if call.certain else "unknown")
        parts += _bar(model, call, (left, right, top), kind, numbers.get(call.start))
    parts += _legend(height, left_out=len(example.calls) - len(calls), minimal=example.minimal)
    parts.append("</svg>")
    return "\n".join(parts)


def _ends(call: Call) -> Iterable[int]:
    return (call.start, call.end) if call.certain else (call.start,)


def _across(model: Model, calls: Sequence[Call]) -> dict[int, int]:
    """Where on the paper each place in the history is: in order, and so far apart that the label of
    every bar fits into it. The last of them, ``NEVER``, is the right end of bars without one."""
    begins: dict[int, list[Call]] = {}
    for call in calls:
        begins.setdefault(call.end if call.certain else NEVER, []).append(call)
    found: dict[int, int] = {}
    last = LEFT_PX - STEP_PX
    for place in [*sorted({at for call in calls for at in _ends(call)}), NEVER]:
        needed = [found[call.start] + _label_px(model, call) for call in begins.get(place, ())]
        last = found[place] = max([last + STEP_PX, *needed])
    return found


def _label_px(model: Model, call: Call) -> int:
    return min(len(model.describe(call)) * CHARACTER_PX, LABEL_PX_MAX) + BESIDE_PX


def _frame(rows: dict[str, int], width: int) -> list[str]:
    parts = []
    for name, row in rows.items():
        middle = TOP_PX + ROW_PX * row + BAR_PX // 2
        parts.append(f'<text x="12" y="{middle + 5}">process {escape(name)}</text>')
        parts.append(
            f'<line class="row" x1="{LEFT_PX}" x2="{width - 12}" y1="{middle}" y2="{middle}"/>'
        )
    return parts


def _bar(
    model: Model, call: Call, place: tuple[int, int, int], kind: str, number: int | None
) -> list[str]:
    left, right, top = place
    said = model.describe(call)
    room = max((right - left - BESIDE_PX) // CHARACTER_PX, 1)
    label = said if len(said) <= room else f"{said[: room - 1]}…"
    completed = call.operation.completed
    end = "never answered" if completed is None else f"{completed.type} {show(completed.value)}"
    error = "" if completed is None or completed.error is None else f" ({completed.error})"
    shown = call.operation.completed_at if call.certain else "?"
    hint = (
        f"process {call.operation.invoked.process}: {said}; events {call.start} to {shown}; "
        f"{end}{error}"
    )
    parts = [
        f"<g><title>{escape(hint)}</title>",
        f'<rect class="{kind}" x="{left}" y="{top}" width="{right - left}" height="{BAR_PX}"/>',
    ]
    text_left = left + 8
    if number is not None:
        parts.append(f'<circle class="number" cx="{left + 14}" cy="{top + BAR_PX // 2}" r="10"/>')
        parts.append(
            f'<text x="{left + 14}" y="{top + BAR_PX // 2 + 4}" text-anchor="middle">{number}'
            "</text>"
        )
        text_left = left + 28
    parts.append(f'<text x="{text_left}" y="{top + BAR_PX // 2 + 5}">{escape(label)}</text></g>')
    return parts


def _legend(height: int, *, left_out: int, minimal: bool) -> list[str]:
    lines = [
        "Numbers: an order that explains as much as any can. Red: what it leaves over.",
        "Dashed: whether and when it happened is unknown, or makes no difference.",
    ]
    if left_out:
        lines.append(f"{left_out} earlier operations are not shown.")
    elif not minimal:
        lines.append("Fewer operations might show it too.")
    top = height - LEGEND_PX + 22
    return [
        f'<text class="note" x="12" y="{top + LINE_PX * number}">{escape(line)}</text>'
        for number, line in enumerate(lines)
    ]
