"""The page of a decision under review, and the figures: lines of styled text, for screen and plain output.

Owns the words and the order of a page. Invariant: text from a request or a model reaches a page only through
`visible`, so no control character, direction mark or markup reaches a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.cells import cell_len

from thor_policy.cli.page_text import Line, cut, fields, fit, headline, named_values, question_text, style_of
from thor_policy.core.escape import visible
from thor_policy.core.requests import Json
from thor_policy.journal.reader import claim_in
from thor_policy.review.agreement import Kappa, Proportion, Rating, Report
from thor_policy.review.session import Item

_LABEL_CELLS, _BAR_CELLS = 22, 24

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
        *fields("question", question_text(row["situation"], full), width),
        *fields("facts", ", ".join(_facts(private.get("facts", {}), full)), width),
        *fields("rules", _rules(body, full), width),
        *fields("errors", ", ".join(named_values(private.get("errors", {}), full)), width),
        *fields("reasoning", cut(row["reasoning"] or "(none)", full), width, "reasoning"),
    ]
    if row["expected_decision"]:
        outcomes = " or ".join(visible(outcome) for outcome in row["expected_decision"].split("|"))
        scenario = f" (scenario {visible(row['scenario_id'])})" if row["scenario_id"] else ""
        parts += fields("expected", outcomes + scenario, width)
    if claim := claim_in(item.event):
        parts += fields("claimed", cut(claim, full), width)
    for rating in item.ratings:
        parts += fields("verdict", _rating(rating, full), width)
    if item.hidden:
        parts += fields("verdict", "of another reviewer, hidden until you judge", width)
    for clause in row["clauses"]:
        parts += fields(visible(clause), cut(clauses.get(clause, "(text not available)"), full), width)
    if full and row["prompt_version"]:
        parts += fields("pack", visible(row["prompt_version"]), width)
    return parts


def _headline(row: Mapping[str, Json], width: int) -> Line:
    who = visible(row["actor"] or "(erased)")
    what = visible(row["action"] or row["decision_type"])
    about = visible(row["entity"] or "-")
    when = row["timestamp"][:19].replace("T", " ")
    right = f"{when}  {fit(visible(row['decision_id'][-8:]), 8)}"
    return headline(f"{who}  {what}  {about}", right, width)


def _outcome(row: Mapping[str, Json], width: int) -> Line:
    details = [visible(row["classification"])] if row["classification"] else []
    details += [f"risk {row['risk_level'] or 'unknown'}", f"by {visible(row['tier'])}"]
    if row["reason_code"]:
        details.append(visible(row["reason_code"]))
    if row["floor"]:
        details.append(f"floor {visible(row['floor'])}")
    outcome = fit(visible(row["decision"]).upper(), width // 2)
    rest = fit(f"   {' · '.join(details)}", max(4, width - 1 - cell_len(outcome)))
    return [(style_of(row["decision"]), f" {outcome}"), ("", rest)]


def _probabilities(row: Mapping[str, Json], width: int, *, plain: bool) -> Iterator[Line]:
    probabilities: dict[str, float] = row["probabilities"]
    available = width - 17  # for label and bar; the rest is for the number and the word `served`
    cells = min(_LABEL_CELLS, available // 2)
    bar_cells = min(_BAR_CELLS, available - cells)
    for label, share in probabilities.items():
        served = label == row["decision"]
        mark = "  served" if served else ""
        shown = fit(visible(label), cells)
        gap = " " * (cells - cell_len(shown))
        if plain:
            yield [("", f" {shown}: {share:.3f}{mark}")]
        else:
            yield [
                ("name" if served else "", f"  {shown}{gap} "),
                (style_of(label), f"{_bar(share, bar_cells):<{bar_cells}}"),
                ("", f" {share:.3f}{mark}"),
            ]


def _bar(share: float, cells: int) -> str:
    eighths = round(max(0.0, min(1.0, share)) * cells * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def _facts(facts: Mapping[str, Json], full: bool) -> Iterator[str]:
    for name, value in facts.items():
        yield visible(name) if value is True else next(named_values({name: value}, full), visible(name))


def _rules(body: Mapping[str, Json], full: bool) -> str:
    floor = body.get("floor")
    if not isinstance(floor, dict) or not floor.get("rules"):
        return ""
    rules = ", ".join(visible(rule) for rule in floor["rules"])
    because = f" ({cut(floor['because'], full)})" if floor.get("because") else ""
    return f"{rules}: at least {visible(floor['outcome'])}{because}"


def _rating(rating: Rating, full: bool) -> str:
    who = visible(rating.reviewer or "(erased)")
    text = f"{who}: {rating.verdict.replace('_', ' ')}"
    if rating.decision:
        text += f", {visible(rating.decision)}"
    if rating.reasoning:
        text += f", “{cut(rating.reasoning, full)}”"
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
        lines.append(f"{fit(names, 27):<28}{_kappa(pair.kappa)}")
    if report.raters > 1:
        lines.append(f"{f'all, {report.raters} verdicts each':<28}{_kappa(report.fleiss)}")
    if not report.pairs:
        lines.append("no decision has a blind second verdict")
    lines += ["", f"{'reviewer':<16} reviews accepted blind settled undone  agrees with others"]
    for person in report.people:
        lines.append(
            f"{fit(visible(person.reviewer), 16):<16} {person.reviews:>7} {person.accepted:>8} "
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
