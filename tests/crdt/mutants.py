"""Bugs put in on purpose, each of which the quick tests of this room must catch."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """*what*: the bug, in words. *before* and *after*: texts of *file*. *tests*: who catches it."""

    what: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


def _in(name: str) -> str:
    return f"quorate/crdt/{name}.py"


MUTANTS = (
    Mutant(
        "what the other side removed stays alive",
        _in("dots"),
        "        elif not theirs_sees(actor, counter):\n            joined.append(entry)",
        "        else:\n            joined.append(entry)",
        ("laws", "almeida"),
    ),
    Mutant(
        "what was removed here comes back with an old delta",
        _in("dots"),
        "        if not mine_sees(actor, counter):\n            joined.append",
        "        if True:\n            joined.append",
        ("laws", "traps"),
    ),
    Mutant(
        "of two payloads of one dot, one's own is kept",
        _in("dots"),
        "joined.append((actor, counter, join_payloads(payload, other)))",
        "joined.append((actor, counter, payload))",
        ("laws", "specification"),
    ),
    Mutant(
        "the entries of a leaf stand in the order of arrival",
        _in("dots"),
        "    joined.sort()\n",
        "",
        ("laws",),
    ),
    Mutant(
        "numbers are added where the greater one counts",
        _in("dots"),
        "tuple(max(one, other) for one",
        "tuple(one + other for one",
        ("laws", "traps"),
    ),
    Mutant(
        "a gap in a context that closes stays in the cloud",
        _in("context"),
        "            self.vector[actor] = counter\n            if actor in self.cloud:\n"
        "                self._close_gap(actor)",
        "            self.vector[actor] = counter",
        ("context",),
    ),
    Mutant(
        "runs that touch stay apart",
        _in("context"),
        "while end < len(runs) and runs[end][0] <= last + 1:",
        "while end < len(runs) and runs[end][0] <= last:",
        ("context",),
    ),
    Mutant(
        "a context forgets the cloud of another",
        _in("context"),
        "        for actor, runs in other.cloud.items():\n            for first, last in runs:\n"
        "                self.add_run(actor, first, last)",
        "",
        ("context", "laws"),
    ),
    Mutant(
        "a context covers what only begins in it",
        _in("context"),
        "self.contains(actor, first) and last <= self._end_of_run(actor, first)",
        "self.contains(actor, first)",
        ("context", "folding"),
    ),
    Mutant(
        "an open delta removes nothing from elements that it does not list",
        _in("state"),
        "            changed += self._drop_dead(delta)",
        "            pass",
        ("laws", "traps"),
    ),
    Mutant(
        "what a mutation replaced is not accounted for",
        _in("state"),
        "            for actor, counter in gone:\n                context.add(actor, counter)\n"
        "        if delta.rest",
        "        if delta.rest",
        ("laws", "specification"),
    ),
    Mutant(
        "a mutation that left nothing alive is not accounted for",
        _in("state"),
        "        if delta.rest:\n            context.update(delta.rest)",
        "",
        ("laws",),
    ),
    Mutant(
        "the quick way for new elements takes in what was removed",
        _in("delta"),
        "            return () if sees(leaf[0][0], leaf[0][1]) else leaf",
        "            return leaf",
        ("laws", "traps"),
    ),
    Mutant(
        "branches that became empty stay",
        _in("state"),
        "            branch.pop(segment, None)\n            if branch:\n                return",
        "            branch.pop(segment, None)\n            return",
        ("laws", "growth"),
    ),
    Mutant(
        "a part carries the whole context",
        _in("delta"),
        "            yield Delta(delta.tag, chunk)\n            chunk, size = {}, 0",
        "            yield Delta(delta.tag, chunk, delta.rest, closed=False)\n"
        "            chunk, size = {}, 0",
        ("laws", "traps"),
    ),
    Mutant(
        "the last part says that what is alive is dead",
        _in("delta"),
        "runs = list(delta.rest.minus(alive).runs())",
        "runs = list(delta.rest.runs())",
        ("laws", "traps"),
    ),
    Mutant(
        "the parts leave out what is dead",
        _in("delta"),
        "    yield from _split_rest(delta, room)",
        "    yield from ()",
        ("laws", "traps"),
    ),
    Mutant(
        "merging forgets what one side knows to be gone",
        _in("delta"),
        "    seen = {*mine_gone, *theirs_gone, *dots_of(mine_leaf), *dots_of(theirs_leaf)}",
        "    seen = {*mine_gone, *dots_of(mine_leaf), *dots_of(theirs_leaf)}",
        ("laws",),
    ),
    Mutant(
        "merging a closed delta with an open one gives a closed one",
        _in("delta"),
        "closed=one.closed and two.closed)",
        "closed=one.closed or two.closed)",
        ("laws",),
    ),
    Mutant(
        "stripping takes away removals of what is alive here",
        _in("delta"),
        "dead = tuple(dot for dot in gone if dot in mine or not view.sees(*dot))",
        "dead = tuple(dot for dot in gone if not view.sees(*dot))",
        ("laws",),
    ),
    Mutant(
        "stripping takes away raised cells",
        _in("delta"),
        "        return join_payloads(held, payload) != held\n",
        "        return False\n",
        ("laws",),
    ),
    Mutant(
        "stripping takes nothing away",
        _in("delta"),
        "    return not view.sees(actor, counter)\n\n\n# --- cutting",
        "    return True\n\n\n# --- cutting",
        ("laws", "traps"),
    ),
    Mutant(
        "a removal takes no dot of its own",
        _in("kind"),
        "    return Delta(kind.tag, parts, bare((at.actor, at.counter)))\n\n\ndef tidy",
        "    return Delta(kind.tag, parts)\n\n\ndef tidy",
        ("laws",),
    ),
    Mutant(
        "adding keeps the dots that it should replace",
        _in("sets"),
        "    return {path: (((at.actor, at.counter, MARK),), dots_of(view.leaf(path)))}",
        "    return {path: (((at.actor, at.counter, MARK),), ())}",
        ("growth",),
    ),
    Mutant(
        "adding what is in the set already makes no new dot",
        _in("sets"),
        "    return {path: (((at.actor, at.counter, MARK),), dots_of(view.leaf(path)))}",
        "    if view.leaf(path):\n        return {}\n"
        "    return {path: (((at.actor, at.counter, MARK),), ())}",
        ("kinds", "specification"),
    ),
    Mutant(
        "a TwoPSet forgets a removal when the element is added elsewhere",
        _in("sets"),
        "        return bool(leaf) and not _lost(leaf)",
        "        return any(payload != LOST for _actor, _counter, payload in leaf)",
        ("kinds", "specification"),
    ),
    Mutant(
        "a write is stamped by the clock alone",
        _in("registers"),
        "            stamp = max(at.stamp, successor(newest))",
        "            stamp = at.stamp",
        ("specification", "traps"),
    ),
    Mutant(
        "equal stamps are decided by the value first",
        _in("registers"),
        '        + actor.to_bytes(ACTOR_BYTES, "big")',
        "        + bytes(ACTOR_BYTES)",
        ("traps", "specification"),
    ),
    Mutant(
        "a write replaces only what its own actor wrote",
        _in("registers"),
        "            entry = (at.actor, at.counter, encode_value(operation.value))\n"
        "            return {path: ((entry,), dots_of(view.leaf(path)))}",
        "            entry = (at.actor, at.counter, encode_value(operation.value))\n"
        "            own = tuple(d for d in dots_of(view.leaf(path)) if d[0] == at.actor)\n"
        "            return {path: ((entry,), own)}",
        ("kinds", "specification"),
    ),
    Mutant(
        "disabling wins over enabling",
        _in("flags"),
        "            if isinstance(operation, cls.wins):",
        "            if isinstance(operation, Enable):",
        ("kinds", "specification"),
    ),
    Mutant(
        "removing a counter drops the cells of others",
        _in("counters"),
        "            elif cls.counts(leaf):\n                parts[path] = (_undone(leaf), ())",
        "            elif cls.counts(leaf):\n                parts[path] = ((), dots_of(leaf))",
        ("specification", "traps"),
    ),
    Mutant(
        "removing a counter only marks one's own cell",
        _in("counters"),
        "            if actor and path[-1] == segment_of(actor):",
        "            if False:",
        ("traps", "growth"),
    ),
    Mutant(
        "a removal by token drops the cell of whoever read it",
        _in("observing"),
        "    parts = kind.removal(view, prefix, NO_ACTOR)",
        "    parts = kind.removal(view, prefix, 1 << 32 | 1)",
        ("kinds", "specification"),
    ),
    Mutant(
        "anyone drops spent cells",
        _in("counters"),
        "        return owner_of(own[0]) == actor and not cls.counts(leaf)",
        "        return not cls.counts(leaf)",
        ("kinds", "specification"),
    ),
    Mutant(
        "a cell is begun anew with every increment",
        _in("cells"),
        "        if entry[0] == at.actor:\n            return entry",
        "        if entry[0] == at.actor and entry[1] == at.counter:\n            return entry",
        ("growth", "folding"),
    ),
    Mutant(
        "a key with a spent counter is still there",
        _in("counters"),
        "            if up != up_undone or down != down_undone:\n                return True\n"
        "        return False",
        "            if up or down:\n                return True\n        return False",
        ("kinds", "specification"),
    ),
    Mutant(
        "rights that were given away can still be spent",
        _in("bounded"),
        "            elif giver == actor:\n                held -= numbers[0]",
        "",
        ("kinds", "bounded"),
    ),
    Mutant(
        "rights are given that are not there",
        _in("bounded"),
        "            _must_hold(view, prefix, at.actor, operation.amount)",
        "",
        ("kinds", "bounded"),
    ),
    Mutant(
        "a bounded counter can be removed",
        _in("bounded"),
        "        if cls.present(view, prefix):",
        "        if False:",
        ("kinds",),
    ),
    Mutant(
        "two kinds may be begun under one key",
        _in("maps"),
        "        if others and not",
        "        if False and not",
        ("kinds",),
    ),
    Mutant(
        "removing a key leaves the kinds below it that do not show",
        _in("maps"),
        "            parts.update(kind.removal(view, below, actor))\n        return parts\n\n"
        "    @classmethod\n    def removal",
        "            parts.update(kind.removal(view, below, actor))\n            break\n"
        "        return parts\n\n    @classmethod\n    def removal",
        ("kinds",),
    ),
    Mutant(
        "a removal by token does not wait for what was read",
        _in("observing"),
        "        if not all(view.sees(actor, counter) for",
        "        if not all(actor for",
        ("kinds",),
    ),
    Mutant(
        "a token may add things",
        _in("observing"),
        "        if kind.locate(path)[0].counts(leaf):",
        "        if False:",
        ("kinds",),
    ),
    Mutant(
        "a clock follows stamps however far ahead",
        _in("clock"),
        "    if ahead_ms > drift_ms_max:",
        "    if False:",
        ("clock", "traps"),
    ),
    Mutant(
        "a clock goes back with the wall clock",
        _in("clock"),
        "    return Stamp(wall_ms, 0) if wall_ms > last.wall_ms else successor(last)",
        "    return Stamp(wall_ms, 0) if wall_ms != last.wall_ms else successor(last)",
        ("clock", "specification"),
    ),
    Mutant(
        "bytes are accepted that are not canonical",
        _in("codec"),
        "    if encode_delta(delta) != encoded:",
        "    if False:",
        ("codec",),
    ),
    Mutant(
        "keys of maps are not looked at",
        _in("kind"),
        "    kind.check_place(path)\n",
        "",
        ("codec",),
    ),
    Mutant(
        "a dot may stand in two leaves",
        _in("codec"),
        "    _check_dots_once(delta)\n    if",
        "    if",
        ("codec",),
    ),
    Mutant(
        "elements are written in the order of arrival",
        _in("codec"),
        "for path in delta.touches())",
        "for path in delta.elements)",
        ("codec",),
    ),
    Mutant(
        "the digest leaves out the payloads",
        _in("digest"),
        "    hashed.update(encoded)\n",
        "",
        ("laws",),
    ),
    Mutant(
        "True is taken for the key 1",
        _in("values"),
        "    if kind is int:",
        "    if isinstance(key, int):",
        ("values",),
    ),
    Mutant(
        "folding gives two dots one name",
        _in("folding"),
        "        return NO_ACTOR, retired.before + first, retired.before + last",
        "        return NO_ACTOR, first, last",
        ("folding", "traps"),
    ),
    Mutant(
        "folding goes on without having all that it renames",
        _in("folding"),
        "    _must_hold_all(state.context, fold)\n",
        "",
        ("folding",),
    ),
    Mutant(
        "folding forgets what removals had undone in the cells of the dead",
        _in("cells"),
        "    if len(dead) < 2:\n        return leaf\n",
        "    if len(dead) < 2:\n        return leaf\n"
        "    dead = [(a, c, (*p[:2], *(0 for _ in p[2:]))) for a, c, p in dead]\n",
        ("folding",),
    ),
    Mutant(
        "the cells of the dead are never summed up",
        _in("cells"),
        "    if len(dead) < 2:",
        "    if True:",
        ("folding", "traps"),
    ),
    Mutant(
        "what the dead gave the heir is lost with them",
        _in("bounded"),
        "        return (giver, receiver) if giver != receiver or own[0] == own[1] else None",
        "        return (giver, receiver) if giver != receiver else None",
        ("folding",),
    ),
)  # fmt: skip
