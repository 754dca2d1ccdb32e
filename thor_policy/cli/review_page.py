"""The page of a decision under review, and the figures: lines of styled text, for screen and plain output.

Owns the words and the order of a page. Invariant: text from a request or a model reaches a page only through
`visible`, so no control character, direction mark or markup reaches a terminal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from rich.cells import cell_len

from thor_policy.cli.escape import visible
from thor_policy.core.requests import Json
from thor_policy.journal.reader import claim_in
from thor_policy.review.agreement import Kappa, Proportion, Rating, Report
from thor_policy.review.session import Item

#: Text with the name of its style.
Span = tuple[str, str]
Line = list[Span]

#: Characters of one value that are shown unless the page is in full.
SHORT_CHARS = 200
#: Columns of the field names on the left.
_NAMES = 11
_LABEL_CELLS, _BAR_CELLS = 22, 24


def wrapped(text: str, width: int) -> list[str]:
    """The text as lines of at most `width` columns, broken at spaces if possible."""
    lines: list[str] = []
    line, used = "", 0
    for word in text.split(" "):
        size = cell_len(word)
        if line and used + 1 + size <= width:
            line, used = f"{line} {word}", used + 1 + size
            continue
        if line:
            lines.append(line)
        line, used = word, size
        if size > width:
            *whole, line = _split_word(word, width)
            lines += whole
            used = cell_len(line)
    return [*lines, line]


def _split_word(word: str, width: int) -> list[str]:
    parts: list[str] = []
    start = used = 0
    for place, char in enumerate(word):
        size = cell_len(char)
        if used + size > width:
            parts.append(word[start:place])
            start, used = place, 0
        used += size
    return [*parts, word[start:]]


# ---------------------------------------------------------------- a decision


def page(
    item: Item, *, width: int = 80, clauses: Mapping[str, str], full: bool = False, plain: bool = False
) -> list[Line]:
    """One decision under review. `clauses` are texts by id; `full` shows long values in full; `plain` draws
    no bars, for screen readers and scripts.
    """
    row, body = item.decision, item.event["body"]
    private = item.event["private"] or {}
    parts = [
        _headline(row, width),
        _outcome(row, width),
        *_probabilities(row, width, plain=plain),
        [],
        *_fields("question", _question(row["situation"], full), width),
        *_fields("facts", ", ".join(_facts(private.get("facts", {}), full)), width),
        *_fields("rules", _rules(body, full), width),
        *_fields("errors", ", ".join(_pairs(private.get("errors", {}), full)), width),
        *_fields("reasoning", _cut(row["reasoning"] or "(none)", full), width, "reasoning"),
    ]
    if row["expected_decision"]:
        outcomes = " or ".join(visible(outcome) for outcome in row["expected_decision"].split("|"))
        scenario = f" (scenario {visible(row['scenario_id'])})" if row["scenario_id"] else ""
        parts += _fields("expected", outcomes + scenario, width)
    if claim := claim_in(item.event):
        parts += _fields("claimed", _cut(claim, full), width)
    for rating in item.ratings:
        parts += _fields("verdict", _rating(rating, full), width)
    if item.hidden:
        parts += _fields("verdict", "of another reviewer, hidden until you judge", width)
    for clause in row["clauses"]:
        parts += _fields(visible(clause), _cut(clauses.get(clause, "(text not available)"), full), width)
    if full and row["prompt_version"]:
        parts += _fields("pack", visible(row["prompt_version"]), width)
    return parts


def _headline(row: Mapping[str, Json], width: int) -> Line:
    who = visible(row["actor"] or "(erased)")
    what = visible(row["action"] or row["decision_type"])
    about = visible(row["entity"] or "-")
    when = row["timestamp"][:19].replace("T", " ")
    right = f"{when}  {_fit(visible(row['decision_id'][-8:]), 8)}"
    left = _fit(f"{who}  {what}  {about}", max(4, width - cell_len(right) - 3))
    gap = " " * max(2, width - 1 - cell_len(left) - cell_len(right))
    return [("name", f" {left}"), ("", gap[1:]), ("quiet", right)]


def _fit(text: str, width: int) -> str:
    return text if cell_len(text) <= width else f"{_split_word(text, width - 1)[0]}…"


def _outcome(row: Mapping[str, Json], width: int) -> Line:
    details = [visible(row["classification"])] if row["classification"] else []
    details += [f"risk {row['risk_level'] or 'unknown'}", f"by {visible(row['tier'])}"]
    if row["reason_code"]:
        details.append(visible(row["reason_code"]))
    if row["floor"]:
        details.append(f"floor {visible(row['floor'])}")
    outcome = _fit(visible(row["decision"]).upper(), width // 2)
    rest = _fit(f"   {' · '.join(details)}", max(4, width - 1 - cell_len(outcome)))
    return [(_style(row["decision"]), f" {outcome}"), ("", rest)]


def _style(outcome: str) -> str:
    return {"allow": "allow", "deny": "deny"}.get(outcome, "between")


def _probabilities(row: Mapping[str, Json], width: int, *, plain: bool) -> Iterator[Line]:
    probabilities: dict[str, float] = row["probabilities"]
    available = width - 17  # for label and bar; the rest is for the number and the word `served`
    cells = min(_LABEL_CELLS, available // 2)
    bar_cells = min(_BAR_CELLS, available - cells)
    for label, share in probabilities.items():
        served = label == row["decision"]
        mark = "  served" if served else ""
        shown = _fit(visible(label), cells)
        gap = " " * (cells - cell_len(shown))
        if plain:
            yield [("", f" {shown}: {share:.3f}{mark}")]
        else:
            yield [
                ("name" if served else "", f"  {shown}{gap} "),
                (_style(label), f"{_bar(share, bar_cells):<{bar_cells}}"),
                ("", f" {share:.3f}{mark}"),
            ]


def _bar(share: float, cells: int) -> str:
    eighths = round(max(0.0, min(1.0, share)) * cells * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def _fields(name: str, text: str, width: int, style: str = "") -> list[Line]:
    """The name on the left and the text beside it; no line if the text is empty."""
    if not text:
        return []
    first, *rest = wrapped(text, width - _NAMES - 2)
    name = _fit(name, _NAMES - 1)
    head: Line = [("name", f" {name}{' ' * (_NAMES - 1 - cell_len(name))} "), (style, first)]
    return [head, *([("", " " * (_NAMES + 1)), (style, line)] for line in rest)]


def _question(situation: Json, full: bool) -> str:
    if not isinstance(situation, dict):
        return "(erased)"
    if "action" not in situation:
        return " · ".join(_pairs(situation, full))
    pairs: list[str] = []
    for name in ("subject", "action", "resource"):
        part = situation.get(name)
        if isinstance(part, dict):
            pairs += _pairs(part.get("properties") or {}, full)
    return " · ".join([*pairs, *_pairs(situation.get("context") or {}, full)]) or "(nothing else)"


def _pairs(value: Mapping[str, Json], full: bool, depth: int = 0) -> Iterator[str]:
    for name, member in value.items():
        key = _cut(str(name), full)
        if isinstance(member, dict) and member and depth < 3:
            yield f"{key} ({', '.join(_pairs(member, full, depth + 1))})"
        else:
            text = member if isinstance(member, str) else json.dumps(member, ensure_ascii=False)
            yield f"{key} {_cut(text, full)}"


def _facts(facts: Mapping[str, Json], full: bool) -> Iterator[str]:
    for name, value in facts.items():
        yield visible(name) if value is True else next(_pairs({name: value}, full), visible(name))


def _cut(text: str, full: bool) -> str:
    if full or len(text) <= SHORT_CHARS:
        return visible(text)
    return f"{visible(text[:SHORT_CHARS])}… ({len(text):,} characters; z shows all)"


def _rules(body: Mapping[str, Json], full: bool) -> str:
    floor = body.get("floor")
    if not isinstance(floor, dict) or not floor.get("rules"):
        return ""
    rules = ", ".join(visible(rule) for rule in floor["rules"])
    because = f" ({_cut(floor['because'], full)})" if floor.get("because") else ""
    return f"{rules}: at least {visible(floor['outcome'])}{because}"


def _rating(rating: Rating, full: bool) -> str:
    who = visible(rating.reviewer or "(erased)")
    text = f"{who}: {rating.verdict.replace('_', ' ')}"
    if rating.decision:
        text += f", {visible(rating.decision)}"
    if rating.reasoning:
        text += f", “{_cut(rating.reasoning, full)}”"
    return text


# ---------------------------------------------------------------- figures


def figures(report: Report) -> list[str]:
    """The report of all reviews as plain lines."""
    lines = [
        f"reviews {report.reviews} of {report.decisions} decisions",
        f"outcomes right, estimated    {share(report.outcomes_right)}",
        f"outcomes right, all reviewed {share(report.outcomes_right_all)}",
        f"disagreements open {report.disagreements}, settled {report.adjudicated}",
        "",
        f"{'agreement (blind verdicts)':<28}{'decisions':>9}  same   kappa  95 % interval",
    ]
    for pair in report.pairs:
        names = " and ".join(visible(name) for name in pair.reviewers)
        lines.append(f"{_fit(names, 27):<28}{_kappa(pair.kappa)}")
    if report.raters > 1:
        lines.append(f"{f'all, {report.raters} verdicts each':<28}{_kappa(report.fleiss)}")
    if not report.pairs:
        lines.append("no decision has a blind second verdict")
    lines += ["", f"{'reviewer':<16} reviews accepted blind settled undone  agrees with others"]
    for person in report.people:
        lines.append(
            f"{_fit(visible(person.reviewer), 16):<16} {person.reviews:>7} {person.accepted:>8} "
            f"{person.blind:>5} {person.adjudicated:>7} {person.withdrawn:>6}  {interval(person.agrees)}"
        )
    return lines


def share(proportion: Proportion) -> str:
    """Counts, the share in per cent and its interval; `-` if nothing was counted."""
    if proportion.share is None:
        return "-"
    return f"{proportion.hits} of {proportion.count}, {interval(proportion)}"


def interval(proportion: Proportion) -> str:
    """A share in per cent with its interval; `-` if nothing was counted."""
    if proportion.share is None or proportion.low is None or proportion.high is None:
        return "-"
    return f"{proportion.share:.0%} ({proportion.low:.0%} to {proportion.high:.0%})"


def _kappa(kappa: Kappa) -> str:
    same = "-" if kappa.agreement is None else f"{kappa.agreement:.0%}"
    if kappa.value is None:
        return f"{kappa.count:>9}  {same:>4}       -"
    interval = "" if kappa.low is None else f"{kappa.low:.2f} to {kappa.high:.2f}"
    return f"{kappa.count:>9}  {same:>4}  {kappa.value:>6.3f}  {interval}"


def as_text(lines: Sequence[Line]) -> list[str]:
    """The lines without their styles."""
    return ["".join(text for _, text in line).rstrip() for line in lines]
