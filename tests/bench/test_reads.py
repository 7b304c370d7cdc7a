"""``bench reads``: what the table is made of. The runs themselves are for an idle machine."""

from __future__ import annotations

import msgspec

from bench import reads
from bench.__main__ import make_parser


def test_rows_are_medians_and_stand_beside_the_leader() -> None:
    row = reads.ReadsRow("causal", "leader", 100.0, 1.0, 2.0, 3.0, 4.0)
    rounds = [msgspec.structs.replace(row, ops_per_s=speed) for speed in (50.0, 100.0, 400.0)]
    assert reads._median_row(rounds) == row
    other = msgspec.structs.replace(row, through="any", ops_per_s=250.0)
    lines = reads._table([row, other]).splitlines()
    assert lines[3].split()[:4] == ["causal", "any", "250", "2.5"]


def test_every_way_and_level_can_be_told_to_a_client() -> None:
    for level in reads.LEVELS:
        for way in reads.WAYS:
            spec = reads.Spec(["127.0.0.1:1"], "127.0.0.1:1", level, way, 1.0)
            assert msgspec.json.decode(msgspec.json.encode(spec), type=reads.Spec) == spec
    assert make_parser().parse_args(["reads"]).rounds == 3
