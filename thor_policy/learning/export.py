"""Export: reviewers' corrections as examples for a pack and as training lines.

Owns the files of an export. Invariant: prompts and answers are made by the code that makes them at run time
(`policy.pack`), so a model is trained on what it will read; near-duplicate corrections are never on both
sides of the split; corrections that are left out are counted by reason. Read-only on the journal; any thread.

Only the newest review of a decision counts. Left out are corrections that the pack can no longer ask or
answer, that were erased, or that the rules would overrule.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

import msgspec
from msgspec import Struct

from thor_policy.core.decisions import Adapter
from thor_policy.core.engine import ChatTurn
from thor_policy.core.errors import ExportError, PackError, RequestError
from thor_policy.core.precedents import Precedent
from thor_policy.core.requests import Evaluation, Json
from thor_policy.core.sources import Consulted, values_of
from thor_policy.journal.events import consulted_of, precedents_of
from thor_policy.journal.reader import Reader, Record
from thor_policy.learning import similarity
from thor_policy.learning.corrections import Change, analysis, page
from thor_policy.policy.lint import lint_pack
from thor_policy.policy.pack import Example, Pack, answer
from thor_policy.policy.pack_files import as_yaml

Format = Literal["few-shot", "chat", "prompt-completion", "preference", "unpaired", "alpaca"]
FORMATS: tuple[Format, ...] = get_args(Format)

#: Least corrections for an export: fewer say more about their reviewers than about the policy.
LEAST = 50
#: Most examples of a few-shot export.
FEW = 8
#: Questions that share at least this part of their three-word runs are near-duplicates.
ALIKE = 0.6
#: Share of the corrections that is held out for testing.
TEST_SHARE = 0.2
#: Corrections that are read at a time.
_PAGE = 500
#: Spaces and line ends, which become one space: an answer's reasoning is one line.
_SPACES = re.compile(r"\s+")


class Provenance(Struct, frozen=True, kw_only=True):
    """The source of a line. `pack` and `model` decided; `rendered_by` is the pack that made the question."""

    decision_id: str
    decided_at: str
    reviewer: str | None
    reviewed_at: str
    verdict: str
    pack: str
    pack_sha256: str
    model: str | None
    model_sha256: str | None
    adapter: Adapter | None
    rendered_by: str
    masked: tuple[str, ...]


class Correction(Struct, frozen=True, kw_only=True):
    """A decision as it should have been.

    `chosen` is the right answer, or its first line where no class or reason is known. `rejected` is the
    model's answer, or its label where no more is known; None where no model was asked or it gave the same
    answer.
    """

    evaluation: Evaluation
    received_at: float
    sources: tuple[Consulted, ...] = ()
    precedents: tuple[Precedent, ...] = ()
    question: str
    outcome: str
    classification: str | None
    clauses: tuple[str, ...]
    reasoning: str | None
    chosen: str
    rejected: str | None
    provenance: Provenance


class Gathered(Struct, frozen=True, kw_only=True):
    """All corrections of a journal: those to export, counts of those left out by reason, all changes."""

    corrections: tuple[Correction, ...]
    left_out: dict[str, int]
    changes: tuple[Change, ...]


class Exported(Struct, frozen=True, kw_only=True):
    """The result of an export: lines by file, and how the corrections were divided."""

    corrections: int
    left_out: dict[str, int]
    groups: int
    largest_group: int
    train: int
    test: int
    files: dict[str, int]


class _LeftOut(Exception):
    """The correction is not exported; the message is the reason that is counted."""


# ---------------------------------------------------------------- gathering


def gather(reader: Reader, pack: Pack, *, progress: Callable[[int], None] = lambda _: None) -> Gathered:
    """All corrections of a journal, rendered by `pack`. Raises JournalError.

    `progress` is called with the number of reviews read so far.
    """
    corrections: list[Correction] = []
    changes: list[Change] = []
    left_out: Counter[str] = Counter()
    for number, row in enumerate(_reviews(reader), 1):
        progress(number)
        if row["review_seq"] != row["reviewed_seq"]:
            left_out["reviewed again later"] += 1
            continue
        if row["approval_task"] is not None:
            left_out["lifted by an approval"] += 1
            continue
        event = reader.trace(row["decision_id"])["event"]
        try:
            changes.append(_change(row, event))
            corrections.append(_correction(row, event, pack))
        except _LeftOut as reason:
            left_out[str(reason)] += 1
    return Gathered(
        corrections=tuple(corrections), left_out=dict(left_out.most_common()), changes=tuple(changes)
    )


def split(corrections: Sequence[Correction]) -> tuple[list[list[int]], frozenset[int]]:
    """Indexes of corrections in groups of near-duplicates, and the indexes of the held-out groups."""
    grouped = similarity.groups([similarity.shingles(each.question) for each in corrections], ALIKE)
    names = [each.provenance.decision_id for each in corrections]
    return grouped, similarity.held_out(grouped, names, TEST_SHARE)


def _reviews(reader: Reader) -> Iterator[Record]:
    """Every review that corrects, oldest first."""
    seq = 0
    while page := reader.corrections(_PAGE, after_seq=seq):
        yield from page
        seq = page[-1]["review_seq"]


def _right_outcome(row: Record) -> str:
    """The outcome that the reviewer gave. Raises _LeftOut if the review gives none."""
    if row["verdict"] == "correct_reasoning":
        return str(row["decision"])
    if row["review_decision"] is None:
        raise _LeftOut("the review names no decision")
    return str(row["review_decision"])


def _change(row: Record, event: Record) -> Change:
    body = event["body"]
    return Change(
        decided=row["decision"],
        corrected=_right_outcome(row),
        actor_type=body.get("subject_type") or row["tier"],
        classification=row["classification"],
        risk=row["risk_level"],
        clauses=tuple(row["clauses"] or ()),
        model=row["model_name"],
        pack=row["prompt_version"],
    )


def _correction(row: Record, event: Record, pack: Pack) -> Correction:
    """The correction of one decision. Raises _LeftOut with the reason if it cannot be exported."""
    body, private, outcome = event["body"], event["private"], _right_outcome(row)
    if event["kind"] != "decision":
        raise _LeftOut("reported, not decided here")
    if private is None:
        raise _LeftOut("erased")
    if body["pack"]["name"] != pack.info.name:
        raise _LeftOut("of another pack")
    if outcome not in pack.labels:
        raise _LeftOut("the pack has no such outcome")
    evaluation = msgspec.convert(private["evaluation"], Evaluation)
    received_at = datetime.fromisoformat(event["at"]).timestamp()
    sources, precedents = consulted_of(body, private), precedents_of(body, private)
    floor = pack.book.apply(evaluation, received_at, sources=sources, precedents=precedents)
    if pack.book.stricter(floor.outcome, outcome) != outcome:
        raise _LeftOut("looser than the rules allow")
    try:
        question = pack.question(evaluation, floor.facts, precedents)
    except RequestError as error:
        raise _LeftOut("too long to be asked") from error
    recorded_class = row["classification"] or floor.classification
    classification = recorded_class if recorded_class in pack.manifest.classifications else None
    same = outcome == row["decision"]
    reasoning = row["review_reasoning"] or (row["reasoning"] if same else None)
    clauses = _clauses(reasoning or "", row, body, pack, same=same)
    whole = classification is not None and bool(reasoning)
    one_line = _SPACES.sub(" ", reasoning or "").strip()
    head = f"{pack.prefix.answer_head} "
    chosen = answer(outcome, classification or "", clauses, one_line) if whole else f"{head}{outcome}"
    model = body.get("model") or {}
    return Correction(
        evaluation=evaluation,
        received_at=received_at,
        sources=sources,
        precedents=precedents,
        question=question,
        outcome=outcome,
        classification=classification,
        clauses=clauses,
        reasoning=one_line or None,
        chosen=chosen,
        rejected=_rejected(row, head, chosen, whole=whole),
        provenance=Provenance(
            decision_id=row["decision_id"],
            decided_at=row["timestamp"],
            reviewer=row["reviewer"],
            reviewed_at=row["review_timestamp"],
            verdict=row["verdict"],
            pack=f"{body['pack']['name']} {body['pack']['version']}",
            pack_sha256=body["pack"]["sha256"],
            model=model.get("name"),
            model_sha256=model.get("sha256"),
            adapter=msgspec.convert(model.get("adapter"), Adapter | None),
            rendered_by=pack.info.sha256,
            masked=tuple(private.get("masked", ())),
        ),
    )


def _clauses(reasoning: str, row: Record, body: Record, pack: Pack, *, same: bool) -> tuple[str, ...]:
    """Clauses that the reasoning names; else those of the answer, if the outcome stays, or of the rules."""
    named = [clause for clause in pack.clauses if re.search(rf"\b{re.escape(clause)}\b", reasoning)]
    recorded = row["clauses"] if same else body["floor"].get("clauses", [])
    known = [clause for clause in named or recorded or () if clause in pack.clauses]
    return tuple(known[: pack.manifest.limits.max_clauses])


def _rejected(row: Record, head: str, chosen: str, *, whole: bool) -> str | None:
    """The model's answer if it differs from `chosen`: the whole, or its label where no more is known."""
    label, text = row["label"], (row["full_response"] or "").strip()
    if label is None:
        return None
    if whole and text.partition("\n")[0] == label:
        return f"{head}{text}" if f"{head}{text}" != chosen else None
    return f"{head}{label}" if f"{head}{label}" != chosen.partition("\n")[0] else None


# ---------------------------------------------------------------- forms


def few_shot(
    corrections: Sequence[Correction], grouped: Sequence[Sequence[int]], pack: Pack
) -> list[Example]:
    """Up to `FEW` examples that lint accepts, taken from each outcome in turn, no two near-duplicates.

    Newer reviews come first: `corrections` are in the order of their reviews. `grouped` holds the indexes of
    near-duplicate corrections.
    """
    group_of = {index: number for number, group in enumerate(grouped) for index in group}
    waiting: defaultdict[str, list[int]] = defaultdict(list)
    for index, correction in enumerate(corrections):
        waiting[correction.outcome].append(index)
    chosen: list[Example] = []
    taken: set[int] = set()
    while len(chosen) < FEW and any(waiting.values()):
        for label in pack.labels:
            while len(chosen) < FEW and waiting[label]:
                index = waiting[label].pop()
                example = None if group_of[index] in taken else _example(corrections[index], pack)
                if example is not None:
                    taken.add(group_of[index])
                    chosen.append(example)
                    break
    return chosen


def example_id(correction: Correction) -> str:
    """The id of a correction as an example."""
    return f"C-{correction.provenance.decision_id[-12:]}"


def _example(correction: Correction, pack: Pack) -> Example | None:
    """The correction as an example of the pack; None if class or reason are missing, or lint refuses it."""
    if correction.classification is None or correction.reasoning is None:
        return None
    sources = correction.sources
    floor = pack.book.apply(correction.evaluation, correction.received_at, sources=sources)
    example = Example(
        id=example_id(correction),
        evaluation=correction.evaluation,
        outcome=correction.outcome,
        classification=correction.classification,
        risk=floor.risk,
        clauses=correction.clauses,
        reasoning=correction.reasoning,
        at=correction.received_at,
        sources=values_of(sources),
    )
    try:
        findings = lint_pack(pack.revised(examples=(example,)))
    except (PackError, RequestError):
        return None
    refused = any(finding.level == "error" and example.id in finding.where for finding in findings)
    return None if refused else example


def _turns(turns: Sequence[ChatTurn]) -> list[Json]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def _prompt(correction: Correction, pack: Pack) -> list[Json]:
    """The turns that the model reads: those of the pack, then the question."""
    return _turns((*pack.prefix.turns, ChatTurn(role="user", text=correction.question)))


def _answer_turn(text: str) -> list[Json]:
    return _turns((ChatTurn(role="assistant", text=text),))


def _chat(correction: Correction, pack: Pack) -> list[Json]:
    return [{"messages": _prompt(correction, pack) + _answer_turn(correction.chosen)}]


def _prompt_completion(correction: Correction, pack: Pack) -> list[Json]:
    return [{"prompt": _prompt(correction, pack), "completion": _answer_turn(correction.chosen)}]


def _preference(correction: Correction, pack: Pack) -> list[Json]:
    rejected, chosen = correction.rejected, correction.chosen
    if rejected is None:
        return []
    if "\n" not in rejected:  # both of one line, else training would prefer the longer answer
        chosen = chosen.partition("\n")[0]
    return [
        {
            "prompt": _prompt(correction, pack),
            "chosen": _answer_turn(chosen),
            "rejected": _answer_turn(rejected),
        }
    ]


def _unpaired(correction: Correction, pack: Pack) -> list[Json]:
    prompt = _prompt(correction, pack)
    answers = [(correction.chosen, True), (correction.rejected, False)]
    return [
        {"prompt": prompt, "completion": _answer_turn(text), "label": label}
        for text, label in answers
        if text is not None
    ]


def _alpaca(correction: Correction, pack: Pack) -> list[Json]:
    """Alpaca has no turns: the instruction is the system turn, without the pack's examples."""
    system = pack.prefix.turns[0].text
    return [{"instruction": system, "input": correction.question, "output": correction.chosen}]


_LINES: dict[Format, Callable[[Correction, Pack], list[Json]]] = {
    "chat": _chat,
    "prompt-completion": _prompt_completion,
    "preference": _preference,
    "unpaired": _unpaired,
    "alpaca": _alpaca,
}


def lines(correction: Correction, pack: Pack, form: Format) -> list[Json]:
    """The lines of a correction in a format other than few-shot, each with its provenance."""
    provenance = msgspec.to_builtins(correction.provenance)
    return [line | {"provenance": provenance} for line in _LINES[form](correction, pack)]


# ---------------------------------------------------------------- writing


def export(
    reader: Reader,
    pack: Pack,
    directory: Path,
    *,
    formats: Sequence[Format],
    least: int = LEAST,
    at: str,
    progress: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Write the export to a directory that is missing or empty; `at` is the time that its report shows.

    Raises ExportError, and writes nothing, if there are too few corrections or the directory is not empty.
    """
    if least < LEAST:
        raise ExportError(f"min_corrections: {least} is below {LEAST}; it can only be raised")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ExportError(f"{directory} is not empty; name a new directory")
    gathered = gather(reader, pack, progress=progress)
    corrections, count = gathered.corrections, len(gathered.corrections)
    refuse_too_few(gathered, pack, least, "an export")
    grouped, test = split(corrections)
    sides = {"train": sorted(set(range(count)) - test), "test": sorted(test)}
    files: dict[str, tuple[bytes, int]] = {}
    for form in formats:
        if form == "few-shot":
            known = [[index for index in group if index not in test] for group in grouped]
            examples = few_shot([corrections[i] for i in sides["train"]], _renumbered(known), pack)
            files["examples.yaml"] = (_commented(examples, gathered, pack).encode(), len(examples))
            continue
        for side, indexes in sides.items():
            rows = [line for index in indexes for line in lines(corrections[index], pack, form)]
            if rows:
                text = b"".join(msgspec.json.encode(line) + b"\n" for line in rows)
                files[f"{form}.{side}.jsonl"] = (text, len(rows))
    done = Exported(
        corrections=count,
        left_out=gathered.left_out,
        groups=len(grouped),
        largest_group=len(grouped[0]),
        train=len(sides["train"]),
        test=len(sides["test"]),
        files={name: number for name, (_, number) in files.items()},
    )
    report = analysis(reader, gathered.changes) | {
        "made_at": at,
        "pack": msgspec.to_builtins(pack.info),
        "export": msgspec.to_builtins(done),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, (content, _) in files.items()},
    }
    contents = {name: content for name, (content, _) in files.items()} | {
        "report.json": msgspec.json.format(msgspec.json.encode(report)) + b"\n",
        "report.html": page(report).encode(),
    }
    _write(directory, contents)
    return done


def refuse_too_few(gathered: Gathered, pack: Pack, least: int, what: str) -> None:
    """Raise ExportError if there are fewer than `least` corrections; `what` needs them, as `an export`."""
    count = len(gathered.corrections)
    if count < least:
        why = "; ".join(f"{number} {reason}" for reason, number in gathered.left_out.items())
        raise ExportError(
            f"there are {count} corrections that {pack.info.name} can use; {what} needs {least}, so "
            f"{least - count} are missing: review more" + (f" (left out: {why})" if why else "")
        )


def _renumbered(grouped: Sequence[Sequence[int]]) -> list[list[int]]:
    """The groups with their indexes counted anew from 0, without empty groups."""
    place = {index: number for number, index in enumerate(sorted(i for group in grouped for i in group))}
    return [[place[index] for index in group] for group in grouped if group]


def _commented(examples: Sequence[Example], gathered: Gathered, pack: Pack) -> str:
    """Examples as YAML, each with a comment that names its source."""
    by_end = {each.provenance.decision_id[-12:]: each.provenance for each in gathered.corrections}
    head = f"# {len(examples)} corrections, as examples of {pack.info.name} {pack.info.version}.\n"
    parts = []
    for example in examples:
        source = by_end[example.id.removeprefix("C-")]
        parts.append(
            f"# {example.id}: decision {source.decision_id} of {source.decided_at}, reviewed "
            f"{source.reviewed_at}\n#   by {source.reviewer!a}\n#   pack {source.pack_sha256}\n"
            f"#   model {source.model_sha256}{_adapter_text(source.adapter)}\n" + as_yaml((example,))
        )
    return head + "\n".join(parts)


def _adapter_text(adapter: Adapter | None) -> str:
    return f" under the adapter {adapter.sha256} at scale {adapter.scale:g}" if adapter else ""


def _write(directory: Path, contents: dict[str, bytes]) -> None:
    """Write all files or none: into a directory beside it, which is then renamed."""
    partial = directory.with_name(f".{directory.name}.part")
    try:
        partial.mkdir(mode=0o700, parents=True)
        for name, content in contents.items():
            (partial / name).write_bytes(content)
        partial.replace(directory)
    except OSError as error:
        raise ExportError(f"{directory}: cannot be written: {error.strerror or error}") from error
