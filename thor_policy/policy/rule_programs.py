"""The programs of a pack's facts and rules, and what they give for one request.

Owns which expressions are run together, and in which order. Invariant: a fact is computed before what reads
it; an expression that fails is named, and takes no other with it. The budget is checked behind each program.
Any thread.

Facts are computed by one program a layer: a layer holds the facts that need no fact of the same or a later
layer. The last program computes all that remains: rules, risk, traits. To pass values into a program and out
of it costs as much as many an expression. So the last program computes the last layers too, if they are small
and their facts are of types whose values are the same outside CEL. (One program for everything would nest one
`cel.bind` for each fact, and the runtime's parser allows 32 levels.) Only if it fails are these layers run by
themselves, and only if a layer fails are its expressions run one by one, to name those that fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from thor_policy.core.requests import Json
from thor_policy.policy import budget
from thor_policy.policy.expressions import Language, Program, Type, is_json
from thor_policy.policy.rule_specs import STEP
from thor_policy.policy.tokens import names_in

#: Types of facts that need no look at their value, by CEL's names.
_PLAIN = ("BOOL", "INT", "STRING")
#: Types of facts that may be computed within the last program, and how many of them.
_WITHIN, _MOST_WITHIN = (*_PLAIN, "DOUBLE"), 12


class _Fact(NamedTuple):
    """A fact. `is_checked`: its type says too little of its value. `is_shown`: it is no step."""

    name: str
    id: str
    is_checked: bool
    is_shown: bool


class _Layer(NamedTuple):
    """Facts that need none of each other, and their ids."""

    facts: tuple[_Fact, ...]
    ids: tuple[str, ...]


class Programs:
    """The programs of checked expressions.

    `facts` has texts by name, and `others` the texts of rules, risk and traits by id. `types` are those of
    the facts. Raises RuntimeError if expressions nest too deeply together.
    """

    def __init__(
        self,
        language: Language,
        facts: Mapping[str, str],
        types: Mapping[str, Type],
        others: Mapping[str, str],
    ) -> None:
        self._language = language
        self._names = tuple(facts)
        self._texts = {f"fact:{name}": text for name, text in facts.items()} | dict(others)
        self._last_ids = tuple(others)
        self._programs: dict[tuple[str, ...], Program] = {}
        layers = []
        for names in _layers(facts):
            layer = tuple(
                _Fact(name, f"fact:{name}", types[name].name not in _PLAIN, not name.startswith(STEP))
                for name in names
            )
            layers.append(_Layer(layer, tuple(fact.id for fact in layer)))
        first = len(layers)  # of the layers that may be computed within the last program
        while first and all(types[fact.name].name in _WITHIN for fact in layers[first - 1].facts):
            first -= 1
        while (last := self._last_with(layers[first:])) is None:
            first += 1
        self._last = last
        self._layers, self._within = layers[:first], layers[first:]
        self._facts_within = tuple(fact for layer in self._within for fact in layer.facts)
        for layer_before in self._layers:
            self._program(layer_before.ids)

    def _last_with(self, layers: Sequence[_Layer]) -> Program | None:
        """The last program with the facts of these layers; None if that makes too large a program."""
        facts = [fact for layer in layers for fact in layer.facts]
        if len(facts) > _MOST_WITHIN:
            return None
        within = {fact.name: self._texts[fact.id] for fact in facts}
        try:
            return self._language.compile([self._texts[id_] for id_ in self._last_ids], self._names, within)
        except RuntimeError:  # they nest too deeply together
            if within:
                return None
            raise

    def single(self, id_: str) -> Program:
        """The program of one expression, by its id in `Floor.errors`."""
        return self._program((id_,))

    def compiled(self, text: str) -> Program:
        """A checked expression as a program, which may use all facts."""
        return self._language.compile([text], self._names)

    def _program(self, ids: tuple[str, ...]) -> Program:
        """The program of these expressions; compiled when it is first needed."""
        if ids not in self._programs:
            texts = [self._texts[id_] for id_ in ids]
            self._programs[ids] = self._language.compile(texts, self._names)
        return self._programs[ids]

    def run(self, inputs: dict[str, Any]) -> tuple[dict[str, Json], list[Any], dict[str, str]]:
        """The facts that are shown, the values of the other expressions in their order, and the errors by id.

        `inputs` are those of `Language.inputs` for the request that this thread works on; facts join them.
        The value of a failed expression is None.
        """
        shown: dict[str, Json] = {}
        errors: dict[str, str] = {}
        for layer in self._layers:
            self._take(layer.facts, self._values(layer.ids, inputs, errors), inputs, shown, errors)
        if not errors:
            values, within = self._last.run(inputs), self._facts_within
            budget.check()
            if not isinstance(values, str) and all(
                not fact.is_checked or is_json(value) for fact, value in zip(within, values, strict=False)
            ):
                self._take(within, values, inputs, shown, errors)
                return shown, values[len(within) :], errors
        for layer in self._within:
            self._take(layer.facts, self._values(layer.ids, inputs, errors), inputs, shown, errors)
        return shown, self._values(self._last_ids, inputs, errors), errors

    def _take(
        self,
        facts: Sequence[_Fact],
        values: Sequence[Any],
        inputs: dict[str, Any],
        shown: dict[str, Json],
        errors: dict[str, str],
    ) -> None:
        """Let the facts that have a value join `inputs`, and those that are no steps `shown`."""
        for (name, id_, is_checked, is_shown), value in zip(facts, values, strict=False):
            if is_checked and not is_json(value):
                errors[id_] = f"gave a {type(value).__name__}, not a plain value"
            elif not errors or id_ not in errors:
                inputs[name] = value
                if is_shown:
                    shown[name] = value

    def _values(self, ids: tuple[str, ...], inputs: Mapping[str, Any], errors: dict[str, str]) -> list[Any]:
        """The value of each of these expressions; None for one that failed, with its message in `errors`."""
        together = self._program(ids).run(inputs)
        budget.check()
        if not isinstance(together, str):
            return together
        values = []
        for id_ in ids:
            single = self.single(id_).run(inputs)
            budget.check()
            if isinstance(single, str):
                errors[id_] = single
            values.append(None if isinstance(single, str) else single[0])
        return values


def _layers(facts: Mapping[str, str]) -> list[list[str]]:
    """The names of the facts by layer."""
    layer_of: dict[str, int] = {}
    for name, text in facts.items():
        needed = [layer_of[other] for other in names_in(text) if other in layer_of]
        layer_of[name] = max(needed, default=-1) + 1
    layers: list[list[str]] = [[] for _ in range(max(layer_of.values(), default=-1) + 1)]
    for name, layer in layer_of.items():
        layers[layer].append(name)
    return layers
