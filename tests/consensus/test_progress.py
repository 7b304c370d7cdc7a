"""What a leader knows of a follower: bounds, order, and what a heartbeat's answer tells."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.types import LogIndex
from quorate.consensus.progress import MARKS_MAX, Progress, ProgressState
from tests import sharing


def at(index: int) -> LogIndex:
    return LogIndex(index)


def replicating(match: int = 4) -> Progress:
    progress = Progress(at(match + 1), tick=0)
    progress.acked(at(match))
    progress.become_replicate()
    return progress


def test_begins_as_a_probe_of_the_leaders_end() -> None:
    progress = Progress(at(9), tick=3)
    assert (progress.state, progress.match, progress.next) == (ProgressState.PROBE, 0, 9)
    assert not progress.paused(4, 99)


def test_one_probe_at_a_time() -> None:
    progress = Progress(at(9), tick=0)
    progress.sent(at(12), 30, 1)
    assert progress.paused(4, 99)
    assert progress.next == 9, "what a probe carries is not counted as sent"


def test_a_probe_still_out_is_in_flight_when_the_match_is_found() -> None:
    progress = Progress(at(9), tick=0)
    progress.sent(at(12), 30, 1)
    progress.acked(at(8))
    progress.become_replicate()
    assert (progress.next, progress.inflight_count, progress.inflight_bytes) == (13, 1, 30)
    progress.acked(at(12))
    assert (progress.inflight_count, progress.inflight_bytes) == (0, 0)


def test_a_probe_that_was_answered_is_not() -> None:
    progress = Progress(at(9), tick=0)
    progress.sent(at(12), 30, 1)
    progress.acked(at(12))
    progress.become_replicate()
    assert (progress.next, progress.inflight_count) == (13, 0)


def test_a_held_probe_waits_for_any_answer() -> None:
    progress = Progress(at(9), tick=0)
    progress.hold()
    assert progress.paused(4, 99)
    assert progress.probe_overdue(1, at(0))


def test_a_probe_is_overdue_when_a_later_heartbeat_overtook_it() -> None:
    progress = Progress(at(9), tick=0)
    progress.sent(at(12), 30, 5)
    assert not progress.probe_overdue(5, at(3)), "that heartbeat left before the probe"
    assert progress.probe_overdue(6, at(3))
    assert not progress.probe_overdue(6, at(12)), "it arrived, and waits for the disk"


def test_stream_is_bounded_by_messages_and_bytes() -> None:
    progress = replicating()
    for last in range(5, 9):
        assert not progress.paused(4, 100)
        progress.sent(at(last), 10, 1)
    assert progress.paused(4, 100)
    assert progress.paused(9, 40)
    assert not progress.paused(9, 41)
    progress.acked(at(6))
    assert (progress.inflight_count, progress.inflight_bytes) == (2, 20)


def test_match_never_goes_back() -> None:
    progress = replicating(8)
    assert not progress.acked(at(3))
    assert progress.match == 8
    progress.become_probe(at(2))
    assert progress.next == 9


def test_two_misses_in_a_row_are_a_loss() -> None:
    progress = replicating()
    progress.sent(at(9), 10, 1)
    progress.mark_round(2)
    progress.mark_round(3)
    assert not progress.lost_before(2, at(4)), "once may be a slow read on the leader's side"
    assert progress.lost_before(3, at(4))


def test_a_follower_that_moves_on_has_lost_nothing() -> None:
    progress = replicating()
    progress.sent(at(9), 10, 1)
    for round_number in (2, 3, 4):
        progress.mark_round(round_number)
    assert not progress.lost_before(2, at(4))
    assert not progress.lost_before(3, at(6))
    assert not progress.lost_before(4, at(9))


def test_what_was_sent_after_the_heartbeat_is_not_expected() -> None:
    progress = replicating()
    progress.mark_round(2)
    progress.sent(at(9), 10, 2)
    assert not progress.lost_before(2, at(4))
    assert not progress.lost_before(2, at(4))


def test_marks_are_bounded() -> None:
    progress = replicating()
    for round_number in range(10 * MARKS_MAX):
        progress.mark_round(round_number)
    assert len(progress.marks) == MARKS_MAX
    assert progress.expected_at(3) == 0


steps = st.lists(
    st.tuples(
        st.sampled_from(["send", "ack", "probe", "replicate", "snapshot", "hold", "mark", "lost"]),
        st.integers(0, 20),
    ),
    max_size=40,
)


@given(steps)
@settings(max_examples=sharing.examples(150))
def test_whatever_happens_match_stays_below_next_and_bytes_add_up(
    taken: list[tuple[str, int]],
) -> None:
    progress = Progress(at(1), tick=0)
    last = 30
    for kind, number in taken:
        match kind:
            case "send" if not progress.paused(4, 100):
                progress.sent(at(min(progress.next + number - 1, last)), number, 1)
            case "ack":
                progress.acked(at(number))
                if progress.state is ProgressState.PROBE and number >= progress.next - 1:
                    progress.become_replicate()
            case "probe":
                progress.become_probe(at(number))
            case "snapshot":
                progress.become_snapshot(at(number))
            case "hold" if progress.state is ProgressState.PROBE:
                progress.hold()
            case "mark":
                progress.mark_round(number)
            case "lost":
                progress.lost_before(number, at(number))
        assert progress.match < progress.next <= last + 1
        assert progress.inflight_count <= 4
        assert progress.inflight_bytes == sum(size for _, size in progress._inflight)
        assert progress.state is ProgressState.REPLICATE or progress.inflight_count == 0
