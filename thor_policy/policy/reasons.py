"""The reason of a scored answer: whose it is, and whether the model's own holds.

Owns the check of the model's explanation. Invariant: a text of the model is shown only if it has none of the
faults below; otherwise the reason of the rules stands in its place, and the explanation is marked `replaced`
with the kind of the fault. Pure; engine thread.

Where the rules settle the outcome, or the pack's limits do, the reason is theirs and the model writes none.
Elsewhere these are faults of the model's explanation:

    clause   It cites a clause that the rules exclude. For an outcome above the loosest: none of the clause's
             rules matched, and either the request shows the model no free text that they could have missed,
             or all of them demand less than the outcome. Or those that matched demand less than the floor, or
             only the loosest outcome. For the loosest outcome: all its rules demand more.
    rule     Its sentence repeats the reason of a rule that demands less than the outcome.
    outcome  Its sentence states an outcome other than the one served, or denies the one served.
    number   Its sentence has a number that is in neither question nor policy.
    name     Its sentence has a name, address or path that is in neither question nor policy.
    empty    There is no sentence.

The question is what the model read of the request, with the reasons of the floor. The policy is the clauses,
the labels and the classes. Why free text matters: rules read every stated member, so a clause whose rules did
not match does not apply, unless a text says what no member states. Of 533 situations in the training data
whose text asks for more than the rules, 455 rest on a clause whose rules did not match.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Literal

from thor_policy.core.decisions import Decision, Explanation, Fault, Floor
from thor_policy.core.engine import WrittenExplanation
from thor_policy.core.requests import Evaluation, Json
from thor_policy.policy.pack import Pack
from thor_policy.policy.tightening import LOW_CONFIDENCE

#: The share of common words (Jaccard) from which a sentence repeats a reason.
REPEATED = 0.8
#: A text of so many words is free text; a shorter one is a name or a state.
FREE_TEXT_WORDS = 4

#: A number that is no part of a name such as R10.
_NUMBER = re.compile(r"(?<!\w)\d(?:[\d.,]*\d)?")
_IN_GROUPS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_IN_DOTTED_GROUPS = re.compile(r"\d{1,3}(?:\.\d{3})+(?:,\d+)?")
_WORD = re.compile(r"[^\W\d_](?:[\w'’.@:/+-]*\w)?")
_SENTENCE_END = re.compile(r"(?:[.!?:;]\s+|^\s*)")
#: Words that negate what follows, up to `_REACH` words later.
_NEGATIONS = frozenset(
    ["not", "no", "never", "nobody", "nothing", "none", "neither", "nor", "cannot", "without"]
)
_REACH = 3
#: Words of closed classes, with which a sentence begins that names nobody.
_OPENING_WORDS = (
    "a about above according across after again against all already also although always an and another "
    "any anybody anyone anything are as at be because before behind being below beside between beyond "
    "both but by can cannot despite do does during each either else even ever every everybody everyone "
    "everything except few fewer first for from full given had half has have he her here his how however "
    "i if in inside instead into is it its just last later least less like many may more most much must "
    "my near nearly neither never next no nobody none nor not nothing now of off often on once one only "
    "or other our out outside over own part per rather same second several she should since so some "
    "somebody someone something somewhere still such than that the their them then there therefore these "
    "they third this those though through together too toward two three four five six seven eight nine "
    "ten twenty thirty forty fifty hundred thousand under unless unlike until up upon very was we were "
    "what whatever when where whether which while who whoever whose why will with within without would "
    "yes yet you your "
)
_OPENERS = frozenset(_OPENING_WORDS.split())


def settled(pack: Pack, decision: Decision) -> str | None:
    """The reason of a decision that needs no words of the model; None if the model must give it."""
    floor = decision.floor
    if decision.reason_code == LOW_CONFIDENCE:
        share = decision.probabilities[pack.loosest]
        unsure = f"The model is not sure enough of {pack.loosest} (probability {share:.2f})"
        return f"{unsure}, so the answer is {decision.judged}."
    is_floor, is_label = decision.judged == floor.outcome, decision.judged == decision.label
    return _of_rules(floor) if is_floor and (floor.because or not is_label) else None


def explanation(pack: Pack, decision: Decision, written: WrittenExplanation) -> Explanation:
    """The explanation of a decision, from what the model wrote where that holds."""
    floor, outcome = decision.floor, decision.judged
    cited = written.values.get("clauses", ())
    sentence = " ".join(written.values.get("reasoning", ()))
    classification = next(iter(written.values.get("classification", ())), None)
    reason, fault = settled(pack, decision), None
    if reason is None and (fault := fault_of(pack, decision.evaluation, floor, outcome, cited, sentence)):
        reason, cited = _of_rules(floor), ()
        classification = floor.classification or classification
        if outcome != floor.outcome:
            reason += f" The model's answer is {outcome}; its own reason did not hold and is not shown."
    return Explanation(
        classification=classification,
        clauses=tuple(dict.fromkeys((*floor.clauses, *cited))),
        reasoning=sentence if reason is None else reason,
        text=written.text,
        truncated=written.truncated,
        generated_tokens=written.generated_tokens,
        explain_ms=written.explain_ms,
        source="replaced" if fault else "model" if reason is None else "rule",
        fault=fault,
    )


def _of_rules(floor: Floor) -> str:
    return floor.because or f"No rule asks for more than {floor.outcome}."


# ---------------------------------------------------------------- the check


def fault_of(
    pack: Pack, evaluation: Evaluation, floor: Floor, outcome: str, clauses: Sequence[str], sentence: str
) -> Fault | None:
    """The first fault of an explanation that cites `clauses` and says `sentence`; None if it holds."""
    if not sentence.strip():
        return "empty"
    named = [clause for clause in pack.clauses if re.search(rf"\b{re.escape(clause)}\b", sentence)]
    free = any(map(_is_free_text, _strings(pack.shown_values(evaluation))))
    if any(_excludes(pack, floor, outcome, clause, free_text=free) for clause in (*clauses, *named)):
        return "clause"
    if _repeats_a_looser_rule(pack, outcome, sentence):
        return "rule"
    if _states_another_outcome(pack.labels, outcome, sentence):
        return "outcome"
    return invented(pack, evaluation, floor, sentence)


def invented(
    pack: Pack, evaluation: Evaluation, floor: Floor, sentence: str
) -> Literal["empty", "number", "name"] | None:
    """The fault of a sentence that says nothing, or what neither question nor policy says; None: it holds."""
    if not sentence.strip():
        return "empty"
    policy = " ".join((*pack.clauses, *pack.clauses.values(), *pack.labels, *pack.manifest.classifications))
    shown = " ".join(_strings(pack.shown_values(evaluation)))
    known = f"{pack.brief_question(evaluation, floor)} {shown} {policy}"
    known_numbers = set().union(*_numbers(known))
    if any(readings.isdisjoint(known_numbers) for readings in _numbers(sentence)):
        return "number"
    if not set(_names(sentence, known)) <= set(_parts(known)):
        return "name"
    return None


def _excludes(pack: Pack, floor: Floor, outcome: str, clause: str, *, free_text: bool) -> bool:
    """True if the rules exclude a clause as the reason of this outcome."""
    rank = pack.labels.index
    rules = [rule for rule in pack.book.rules if rule.clause == clause]
    if outcome == pack.loosest:
        return bool(rules) and all(rank(rule.outcome) > 0 for rule in rules)
    matched = [rule for rule in rules if rule.id in floor.rules]
    if matched:
        least = max(rank(rule.outcome) for rule in matched)
        return least < rank(floor.outcome) or least == 0
    return bool(rules) and (not free_text or all(rank(rule.outcome) < rank(outcome) for rule in rules))


def _repeats_a_looser_rule(pack: Pack, outcome: str, sentence: str) -> bool:
    """True if a sentence has the words of the reason of a rule that demands less than the outcome."""
    words, rank = _content(sentence), pack.labels.index
    reasons = (rule.because for rule in pack.book.rules if rank(rule.outcome) < rank(outcome))
    return any(
        len(words & others) >= REPEATED * len(words | others) for others in map(_content, reasons) if others
    )


def _content(text: str) -> set[str]:
    """The words and numbers of a text but for words of a closed class."""
    return {*_parts(text), *_NUMBER.findall(text)} - _OPENERS


def _is_free_text(text: str) -> bool:
    return len(text.split()) >= FREE_TEXT_WORDS


def _strings(values: Iterable[Json]) -> Iterator[str]:
    """All texts and numbers in JSON values, keys included."""
    stack = list(values)
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            stack += value
        elif value is not None:
            yield str(value)


def _states_another_outcome(labels: Sequence[str], outcome: str, sentence: str) -> bool:
    """True if a sentence says an outcome that is not served, or negates the one that is."""
    text = re.sub(r"[\s_-]+", " ", sentence.casefold())
    for label in labels:
        for match in re.finditer(_forms_of(label), text):
            before = re.findall(r"[\w'’]+", text[: match.start()])[-_REACH:]
            negated = any(word in _NEGATIONS or word.endswith(("n't", "n’t")) for word in before)
            if negated == (label == outcome):
                return True
    return False


def _forms_of(label: str) -> str:
    """A pattern for a label in a sentence: `require mfa`, `requires mfa`, `deny`, `denies`, `denied`."""
    verb, *rest = label.replace("_", " ").split(" ")
    forms = {verb, f"{verb}s", f"{verb}ed", f"{verb}d", f"{verb}ing"}
    if verb.endswith("y"):
        forms |= {f"{verb[:-1]}ies", f"{verb[:-1]}ied"}
    return (
        rf"\b(?:{'|'.join(sorted(map(re.escape, forms)))}){re.escape(''.join(f' {word}' for word in rest))}\b"
    )


def _numbers(text: str) -> list[set[Decimal | str]]:
    """The numbers of a text, each with its readings: `1.000` may be a thousand, and `1,000` is."""
    return [_readings(match) for match in _NUMBER.findall(text)]


def _readings(number: str) -> set[Decimal | str]:
    if _IN_GROUPS.fullmatch(number):
        return {Decimal(number.replace(",", ""))}
    readings: set[Decimal | str] = set()
    if _IN_DOTTED_GROUPS.fullmatch(number):
        readings.add(Decimal(number.replace(".", "").replace(",", ".")))
    if re.fullmatch(r"\d+(?:[.,]\d+)?", number):
        readings.add(Decimal(number.replace(",", ".")))
    return readings or {number}


def _names(sentence: str, known: str) -> Iterator[str]:
    """What a sentence names, in lower case: words with a capital, a digit or a sign of an address or path.

    The first word of a sentence has a capital in any case. It counts unless it is a word of a closed class,
    ends in `ing`, or is known.
    """
    words = set(_parts(known))
    ends = {match.end() for match in _SENTENCE_END.finditer(sentence)}
    for match in _WORD.finditer(sentence):
        word = _stem(match[0])
        first = match.start() in ends and match[0][0].isupper() and match[0][1:].islower()
        if first:
            if word not in _OPENERS and not word.endswith("ing") and word not in words:
                yield word
        elif any(char.isupper() or char.isdigit() or char in "@/" for char in match[0]):
            yield word


def _parts(text: str) -> Collection[str]:
    """The words of a text in lower case, whole and in the parts between their signs."""
    words = set()
    for match in _WORD.findall(text):
        words.add(_stem(match))
        words.update(_stem(part) for part in re.split(r"[^\w'’]|_", match) if part)
    return words


def _stem(word: str) -> str:
    """A word in lower case, without a possessive."""
    return re.sub(r"['’]s?$", "", word.casefold())
