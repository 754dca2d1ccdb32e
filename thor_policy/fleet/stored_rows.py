"""The rows of a store's tables, compared with what their events say.

Owns that comparison, for every table that people query. Invariant: each row is computed again from the stored
bytes of an event; a row without such an event, an event without its row, and a changed column are problems,
unless the store noted that the row did not fit. A column that an erasure emptied may be empty. Memory holds
the rows of one page. The main thread of a command.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from thor_policy.core.errors import JournalError
from thor_policy.fleet.batches import TABLES, Stored, rows_of
from thor_policy.fleet.store import Store
from thor_policy.journal.projections import GROUP_OF, GROUPS

#: Columns of `decisions` that later events change, each with the column that names the event.
_CHANGED = {name: group for group, names in GROUPS.items() for name in names}
#: Columns that follow from no event: what a trace lacks is what the device said last.
_OF_THE_DEVICE = frozenset({"lacks"})
#: The kinds of event that change each group.
_KINDS = {group: [kind for kind, of in GROUP_OF.items() if of == group] for group in GROUPS}

_DANGLING = """
SELECT d.seq FROM decisions d LEFT JOIN events e ON e.journal = d.journal AND e.seq = d.{group}
    AND e.kind = ANY (%(kinds)s) AND e.subject_id = convert_to(d.decision_id, 'UTF8')
WHERE d.journal = %(journal)s AND d.{group} IS NOT NULL AND e.seq IS NULL LIMIT 1
"""


class Checked(Struct, frozen=True, kw_only=True):
    """An event with what is left of its private part. `erased`: an erasure took some of it, or all."""

    event: Stored
    erased: bool


class StoredRows:
    """The rows of one journal. Raises StoreError."""

    def __init__(self, store: Store, journal: int) -> None:
        self._store, self._journal = store, journal
        self._unfit = store.ask(
            "SELECT first_seq, last_seq FROM without_rows WHERE journal = %(journal)s", {"journal": journal}
        )

    def problem(self, page: Sequence[Checked]) -> str | None:
        """What is wrong with the rows of these events, which follow each other; None: nothing."""
        expected: dict[str, dict[int, dict[str, Any]]] = {table: {} for table in TABLES}
        changes: dict[int, dict[str, Any]] = {}
        try:
            for each in page:
                seq = each.event[0].seq
                for table, (row,) in rows_of([each.event]).items():
                    (changes if table == "changes" else expected[table])[seq] = row
        except JournalError as error:
            return str(error)
        erased = {each.event[0].seq for each in page if each.erased}
        low, high = page[0].event[0].seq, page[-1].event[0].seq
        for table in sorted(TABLES):
            stored = self._rows(table, "seq BETWEEN %(low)s AND %(high)s", low=low, high=high)
            if fault := self._difference(table, expected[table], {row["seq"]: row for row in stored}, erased):
                return fault
        return self._change(changes, erased)

    def end(self, newest: int) -> str | None:
        """What is wrong with the rows that belong to no event; None: nothing. `newest` is the last event."""
        for table in sorted(TABLES):
            for row in self._rows(table, "(seq > %(newest)s OR seq < 1) LIMIT 1", newest=newest):
                return f"{table} has a row of event {row['seq']}, which the store does not have"
        for group, kinds in _KINDS.items():
            values = {"journal": self._journal, "kinds": kinds}
            for row in self._store.ask(_DANGLING.format(group=group), values):
                return f"the row of event {row['seq']} in decisions names a wrong event: {group}"
        return None

    def _rows(self, table: str, condition: str, **values: Any) -> Iterable[dict[str, Any]]:
        question = f"SELECT * FROM {table} WHERE journal = %(journal)s AND {condition}"  # noqa: S608
        with self._store.connection.cursor() as cursor:
            return cursor.execute(question.encode(), {"journal": self._journal, **values}).fetchall()

    def _difference(
        self,
        table: str,
        expected: dict[int, dict[str, Any]],
        stored: dict[int, dict[str, Any]],
        erased: set[int],
    ) -> str | None:
        for seq in sorted(expected.keys() | stored.keys()):
            if seq not in expected:
                return f"{table} has a row of event {seq}, which makes none"
            if seq not in stored:
                if not self._did_not_fit(seq):
                    return f"{table} lacks the row of event {seq}"
                continue
            row = stored[seq]
            names = [
                name
                for name in row
                if name not in ("journal", *_OF_THE_DEVICE, *GROUPS)
                and row.get(_CHANGED.get(name, "")) is None
            ]
            if name := _first_difference(expected[seq], row, names, erased=seq in erased):
                return f"the row of event {seq} in {table} does not say what the event says: {name}"
        return None

    def _change(self, changes: dict[int, dict[str, Any]], erased: set[int]) -> str | None:
        """Whether decisions say what these later events, by number, made of them."""
        ids = sorted({change["decision_id"] for change in changes.values()})
        stored = {
            row["decision_id"]: row for row in self._rows("decisions", "decision_id = ANY (%(ids)s)", ids=ids)
        }
        for seq, change in changes.items():
            row = stored.get(change["decision_id"])
            group = next(name for name in GROUPS if name in change)
            if row is None or (row[group] is not None and row[group] > seq) or self._did_not_fit(seq):
                continue
            name: str | None = group
            if row[group] == seq:
                name = _first_difference(change, row, GROUPS[group], erased=seq in erased)
            if name:
                return (
                    f"the row of event {row['seq']} in decisions does not say what event {seq} says: {name}"
                )
        return None

    def _did_not_fit(self, seq: int) -> bool:
        return any(each["first_seq"] <= seq <= each["last_seq"] for each in self._unfit)


def _first_difference(
    expected: dict[str, Any], stored: dict[str, Any], names: Iterable[str], *, erased: bool
) -> str | None:
    for name in names:
        wanted, value = expected.get(name), stored[name]
        if not (_same(wanted, value) or (erased and value is None)):
            return name
    return None


def _same(wanted: Any, value: Any) -> bool:
    """Whether a value of the store is that of an event, in its own type."""
    if wanted is None or value is None:
        return wanted is None and value is None
    if isinstance(value, datetime):
        return datetime.fromisoformat(wanted) == value
    if isinstance(value, bool) and isinstance(wanted, int):
        return bool(wanted) == value
    if isinstance(value, dict) and isinstance(wanted, dict):
        return value.keys() == wanted.keys() and all(_same(wanted[name], value[name]) for name in wanted)
    if isinstance(value, list) and isinstance(wanted, list):
        return len(value) == len(wanted) and all(map(_same, wanted, value))
    if isinstance(wanted, float) and isinstance(value, int | float):
        return wanted == float(value)
    return bool(wanted == value)
