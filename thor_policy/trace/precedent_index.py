"""The index of precedents: vectors of past situations in memory, searched in two exact steps.

Owns the copy of the vectors. Invariant: it holds what the journal's table `vectors` held at the change
`change`, so it can be thrown away and made again; a filter decides before the search, not after it. The first
step counts differing sign bits of all vectors that the filter leaves (faiss), the second computes the cosine
of the nearest. One thread uses it. numpy and faiss are imported when an index is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from typing import Any

from thor_policy.core.recall import DIMENSIONS, Filters
from thor_policy.journal import precedent_queries
from thor_policy.journal.reader import instant
from thor_policy.journal.vectors import Change

#: Vectors whose cosine is computed after the first step (docs/explanation/measurements.md).
RESCORED = 2_000
#: A filter that leaves at most so many needs no first step.
FEW = 4_000
#: Rows that the arrays have at least, and by how much they grow.
_LEAST_ROWS, _GROWTH = 1_024, 1.25
#: Bytes of the sign bits of a vector.
_BIT_BYTES = DIMENSIONS // 8


def missing() -> str | None:
    """What the index lacks, with the cure; None if it lacks nothing. Imports nothing."""
    if find_spec("faiss") is None:
        return "faiss is not installed; run: ./scripts/setup cpu"
    return None


class PrecedentIndex:
    """An empty index of at most `most` vectors: of more, the ones stored last are kept."""

    def __init__(self, most: int) -> None:
        import faiss
        import numpy

        faiss.omp_set_num_threads(1)  # the other cores are for decisions
        self._faiss: Any = faiss  # its stubs lack half of what it has
        self._np = numpy
        self._most = most
        #: The newest change of the journal that it has.
        self.change = 0
        self._packs: dict[str | None, int] = {}
        self._reset(_LEAST_ROWS)

    def _reset(self, capacity: int) -> None:
        np = self._np
        self._bits = self._faiss.IndexBinaryFlat(DIMENSIONS)
        self._rows = 0
        self._newest_seq = 0
        self._sorted = True
        self._dead = 0
        self._vectors = np.zeros((capacity, DIMENSIONS), np.float16)
        self._seqs = np.zeros(capacity, np.int64)
        self._times = np.zeros(capacity, np.float64)
        self._fields = {name: np.zeros(capacity, np.int64) for name in ("type", "actor", "entity", "pack")}
        self._alive = np.zeros(capacity, bool)

    def __len__(self) -> int:
        return int(self._rows - self._dead)

    @property
    def size_bytes(self) -> int:
        """Memory of the arrays."""
        arrays = (self._vectors, self._seqs, self._times, self._alive, *self._fields.values())
        return int(sum(array.nbytes for array in arrays)) + self._rows * _BIT_BYTES

    # ------------------------------------------------------------ what it holds

    def add(self, page: Sequence[Change]) -> None:
        """Take in changes in their order."""
        known = [each.seq for each in page if each.seq <= self._newest_seq]
        if known:
            self._kill(known)
        of_seq = {each.seq: each for each in page if each.vector}  # of two changes of one, the last counts
        fresh = list(of_seq.values())
        for each in page:
            if not each.vector:
                fresh = [other for other in fresh if other.seq != each.seq or other.change > each.change]
        if page:
            self.change = page[-1].change
        if fresh:
            self._append(fresh)
        if self._dead > max(1_000, self._rows // 4) or self._rows - self._dead > self._most * 1.1:
            self._compact()

    def _append(self, fresh: Sequence[Change]) -> None:
        np, start, end = self._np, self._rows, self._rows + len(fresh)
        fresh = sorted(fresh, key=lambda each: each.seq)
        self._sorted = self._sorted and fresh[0].seq > self._newest_seq
        if end > len(self._seqs):
            self._grow(end)
        raw = np.frombuffer(b"".join(each.vector for each in fresh), "<f2").reshape(-1, DIMENSIONS)
        self._vectors[start:end] = raw
        self._bits.add(np.packbits(raw > 0, axis=1))
        self._seqs[start:end] = [each.seq for each in fresh]
        self._times[start:end] = [_unix(each.timestamp) for each in fresh]
        self._fields["type"][start:end] = [hash(each.decision_type) for each in fresh]
        self._fields["actor"][start:end] = [hash(each.actor) for each in fresh]
        self._fields["entity"][start:end] = [hash(each.entity) for each in fresh]
        packs = self._packs
        self._fields["pack"][start:end] = [packs.setdefault(each.pack, len(packs)) for each in fresh]
        self._alive[start:end] = True
        self._rows = end
        self._newest_seq = max(self._newest_seq, int(self._seqs[start:end].max()))

    def _grow(self, least: int) -> None:
        np, capacity = self._np, max(least, int(len(self._seqs) * _GROWTH))
        for name in ("_vectors", "_seqs", "_times", "_alive"):
            old = getattr(self, name)
            new = np.zeros((capacity, *old.shape[1:]), old.dtype)
            new[: self._rows] = old[: self._rows]
            setattr(self, name, new)
        for name, old in self._fields.items():
            self._fields[name] = np.zeros(capacity, old.dtype)
            self._fields[name][: self._rows] = old[: self._rows]

    def _kill(self, seqs: Sequence[int]) -> None:
        """Drop vectors: their numbers and bits are overwritten at once."""
        gone = self._places(seqs)
        gone = gone[self._alive[gone]]
        if not len(gone):
            return
        self._alive[gone] = False
        self._vectors[gone] = 0
        stored = self._faiss.rev_swig_ptr(self._bits.xb.data(), self._rows * _BIT_BYTES)
        stored.reshape(self._rows, _BIT_BYTES)[gone] = 0
        self._dead += len(gone)

    def _places(self, seqs: Sequence[int]) -> Any:
        """The rows of these decisions, as far as it has them."""
        np, own = self._np, self._seqs[: self._rows]
        wanted = np.asarray(seqs, np.int64)
        if not self._sorted:
            return np.flatnonzero(np.isin(own, wanted))
        places = np.searchsorted(own, wanted)
        places, wanted = places[places < self._rows], wanted[places < self._rows]
        return places[own[places] == wanted]

    def _compact(self) -> None:
        """Make the arrays anew from what is alive: of more than `most`, the newest decisions."""
        np = self._np
        kept = np.flatnonzero(self._alive[: self._rows])
        kept = kept[np.argsort(self._seqs[kept])][-self._most :]
        old = self._vectors, self._seqs, self._times, self._fields, self._newest_seq
        self._reset(max(_LEAST_ROWS, int(len(kept) * _GROWTH)))
        vectors, seqs, times, fields, self._newest_seq = old
        self._rows = len(kept)
        self._vectors[: self._rows] = vectors[kept]
        self._seqs[: self._rows] = seqs[kept]
        self._times[: self._rows] = times[kept]
        for name, values in fields.items():
            self._fields[name][: self._rows] = values[kept]
        self._alive[: self._rows] = True
        for start in range(0, self._rows, 65_536):
            end = min(start + 65_536, self._rows)
            self._bits.add(np.packbits(self._vectors[start:end] > 0, axis=1))

    # ------------------------------------------------------------ searching

    def nearest(
        self, vector: Any, filters: Filters, limit: int, *, without: Sequence[int] = ()
    ) -> list[tuple[int, float]]:
        """The numbers of the most similar decisions that hold the filters, with their cosine; nearest first.

        `without` are numbers that are left out. The cosine of a pair does not depend on what else is there.
        """
        np, rows = self._np, self._rows
        if not len(self):
            return []
        query = np.asarray(vector, np.float32).astype(np.float16).astype(np.float32)
        mask = self._mask(filters, without)
        count = len(self) if mask is None else int(np.count_nonzero(mask))
        if count <= FEW:
            chosen = np.flatnonzero(mask) if mask is not None else np.arange(rows)
        else:
            bits = np.packbits(query > 0)[None, :]
            wanted = max(RESCORED, 4 * limit)
            if mask is None:
                _, labels = self._bits.search(bits, wanted)
            else:
                bitmap = np.packbits(mask, bitorder="little")
                selector = self._faiss.IDSelectorBitmap(bitmap)
                of_filter = self._faiss.SearchParameters(sel=selector)
                _, labels = self._bits.search(bits, wanted, params=of_filter)
            chosen = labels[0][labels[0] >= 0]
        if not len(chosen):
            return []
        # one product and one sum for each row, so that no row's result depends on how many there are
        cosines = (self._vectors[chosen].astype(np.float32) * query).sum(axis=1)
        best = np.lexsort((-self._seqs[chosen], -cosines))[:limit]
        return [(int(self._seqs[chosen[at]]), float(cosines[at])) for at in best]

    def decode(self, stored: bytes) -> Any:
        """A vector as the journal stores it, as an array."""
        return self._np.frombuffer(stored, "<f2").astype(self._np.float32)

    def cosines(self, vector: Any, stored: Mapping[int, bytes]) -> dict[int, float]:
        """The cosine of each stored vector with another, as `nearest` computes it."""
        if not stored:
            return {}
        np = self._np
        query = np.asarray(vector, np.float32).astype(np.float16).astype(np.float32)
        rows = np.frombuffer(b"".join(stored.values()), "<f2").reshape(-1, DIMENSIONS)
        cosines = (rows.astype(np.float32) * query).sum(axis=1)
        return {seq: float(cosine) for seq, cosine in zip(stored, cosines, strict=True)}

    def exact(self, vector: Any, filters: Filters, limit: int) -> list[tuple[int, float]]:
        """As `nearest`, from the cosine of every vector: what recall is measured against."""
        np = self._np
        query = np.asarray(vector, np.float32).astype(np.float16).astype(np.float32)
        mask = self._mask(filters, ())
        chosen = np.arange(self._rows) if mask is None else np.flatnonzero(mask)
        cosines = np.concatenate(
            [
                (self._vectors[part].astype(np.float32) * query).sum(axis=1)
                for part in np.array_split(chosen, max(1, len(chosen) // 65_536))
            ]
        )
        best = np.lexsort((-self._seqs[chosen], -cosines))[:limit]
        return [(int(self._seqs[chosen[at]]), float(cosines[at])) for at in best]

    def _mask(self, filters: Filters, without: Sequence[int]) -> Any:
        """Which rows may be in the result, as booleans; None: all."""
        np, rows = self._np, slice(0, self._rows)
        masks = list(self._masks(filters, rows))
        if self._dead:
            masks.append(self._alive[rows])
        left_out = self._places(without) if len(without) else ()
        if not masks and not len(left_out):
            return None
        mask = np.ones(self._rows, bool)
        for other in masks:
            mask &= other
        if len(left_out):
            mask[left_out] = False
        return mask

    def _masks(self, filters: Filters, rows: slice) -> Iterator[Any]:
        fields = self._fields
        if filters.type is not None:
            yield fields["type"][rows] == hash(filters.type)
        if filters.actor is not None:
            yield fields["actor"][rows] == hash(precedent_queries.actor_of(filters))
        if filters.entity is not None:
            yield fields["entity"][rows] == hash(filters.entity)
        if filters.pack is not None:
            codes = [
                code for name, code in self._packs.items() if precedent_queries.of_pack(name, filters.pack)
            ]
            yield self._np.isin(fields["pack"][rows], codes)
        if filters.since is not None:
            yield self._times[rows] >= _unix(instant(filters.since, "filters.since"))
        if filters.until is not None:
            yield self._times[rows] < _unix(instant(filters.until, "filters.until"))


def _unix(timestamp: str | None) -> float:
    return datetime.fromisoformat(timestamp or "").timestamp()
