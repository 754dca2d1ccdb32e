"""Sealed segments: complete or absent, each event in exactly one, and their chain is checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.build import by_rule, erasing, record, rows, signing, writing
from tests.stores import restamp, ship
from thor_policy.fleet import segments
from thor_policy.fleet.segments import Limits, SegmentSink, check_segments, read_segment
from thor_policy.fleet.shipper import Forked, SinkError
from thor_policy.security import files


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal of the device is."""
    return tmp_path / "state" / "policy_decisions.db"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the segments are."""
    return tmp_path / "segments"


def sink(directory: Path, *, events: int = 3, clock: Clock | None = None) -> SegmentSink:
    return SegmentSink(directory, Limits(events=events, seconds=60), clock=clock or Clock())


def sealed(directory: Path) -> list[tuple[int, int]]:
    """First and last event of each segment."""
    read = [read_segment(path) for path in sorted(directory.glob("*.jsonl"))]
    return [(each.first.first_seq, each.last.last_seq) for each in read]


def test_a_segment_is_sealed_by_number_and_the_next_process_goes_on_behind_it(
    path: Path, directory: Path
) -> None:
    record(path, *(by_rule() for _ in range(7)))
    first = sink(directory)
    ship(path, first, most=1)
    assert sealed(directory) == [(1, 3), (4, 6)]
    assert len(list(directory.glob("*.tmp"))) == 1
    first.close()
    record(path, *(by_rule() for _ in range(2)))
    ship(path, sink(directory), most=1)
    assert sealed(directory) == [(1, 3), (4, 6), (7, 9)]
    assert [(row["events"], row["problem"]) for row in check_segments(directory)] == [(9, None)]


def test_a_segment_is_sealed_by_age(path: Path, directory: Path) -> None:
    clock = Clock()
    record(path, by_rule())
    open_sink = sink(directory, clock=clock)
    ship(path, open_sink)
    assert sealed(directory) == []
    clock.now = 59.0
    assert open_sink.idle() is None
    clock.now = 60.0
    position = open_sink.idle()
    assert position is not None
    assert position.seq == 1
    assert sealed(directory) == [(1, 1)]


def test_a_segment_is_sealed_by_size(path: Path, directory: Path) -> None:
    record(path, *(by_rule() for _ in range(4)))
    small = SegmentSink(directory, Limits(size=1), clock=Clock())
    ship(path, small, most=2)
    assert sealed(directory) == [(1, 2), (3, 4)]


@pytest.mark.parametrize("step", ["place", "rename"])
@pytest.mark.parametrize("times", [0, 1])
def test_a_crash_while_sealing_loses_and_doubles_nothing(
    path: Path, directory: Path, step: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(path, *(by_rule() for _ in range(9)))
    real = getattr(files, step)
    left = iter([True] * times)

    def crash(*arguments: object, **options: object) -> None:
        if not next(left, False):
            raise OSError(5, "the power went")
        real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(segments.files, step, crash)
        with pytest.raises(SinkError):
            ship(path, sink(directory), most=3)
    ship(path, sink(directory), most=3)
    assert sealed(directory) == [(1, 3), (4, 6), (7, 9)]
    assert list(directory.glob("*.tmp")) == []


def test_segments_that_were_moved_away_are_not_written_again(path: Path, directory: Path) -> None:
    record(path, *(by_rule() for _ in range(3)))
    ship(path, sink(directory))
    for segment in directory.glob("*.jsonl"):
        segment.unlink()
    record(path, *(by_rule() for _ in range(3)))
    ship(path, sink(directory))
    assert sealed(directory) == [(4, 6)]


def test_a_journal_that_was_stamped_anew_is_refused(path: Path, directory: Path) -> None:
    record(path, *(by_rule() for _ in range(3)))
    ship(path, sink(directory))
    with writing(path) as connection:
        connection.execute("UPDATE events SET mono_ns = mono_ns + 1 WHERE seq = 2")
        restamp(connection)
    with pytest.raises(Forked, match="the sink segments has event 3 with the hash"):
        ship(path, sink(directory))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"outcome', '"autcome', "does not match its hash"),
        ("alice", "mallo", "has a private part of event 1 that does not match its digest"),
        ('"last_seq":3', '"last_seq":4', "does not end as its last line says"),
        ("thor-policy segment 1", "thor-policy segment 9", "has the format"),
    ],
)
def test_a_reader_finds_what_was_changed_in_a_segment(
    path: Path, directory: Path, old: str, new: str, problem: str
) -> None:
    record(path, *(by_rule() for _ in range(3)))
    ship(path, sink(directory))
    (segment,) = directory.glob("*.jsonl")
    text = segment.read_text(encoding="utf-8")
    escaped = old.replace('"', '\\"') if old not in text else old
    assert escaped in text
    segment.write_text(text.replace(escaped, new.replace('"', '\\"') if escaped != old else new, 1))
    with pytest.raises(Forked, match=problem):
        read_segment(segment)
    assert problem in check_segments(directory)[0]["problem"]


def test_a_segment_has_the_checkpoints_and_what_an_erasure_left(path: Path, directory: Path) -> None:
    record(path, by_rule())
    kept = rows(path, "SELECT value FROM private")[0][0].replace("alice", "[erased]")
    record(path, erasing(path, 1, keep=kept), by_rule(), checkpoints=signing(path))
    ship(path, sink(directory))
    (segment,) = [read_segment(each) for each in directory.glob("*.jsonl")]
    assert [(left.seq, left.value) for left in segment.last.left] == [(1, kept)]
    assert "alice" not in segment.path.read_text(encoding="utf-8").splitlines()[1]


def test_a_directory_in_which_others_may_write_is_refused(path: Path, directory: Path) -> None:
    record(path, by_rule())
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(SinkError, match="the directory"):
        ship(path, sink(directory))
