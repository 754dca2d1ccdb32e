"""The programs of a pack's facts and rules, and what they give for one request.

Owns which expressions are run together, and in which order. Invariant: a fact is computed before what reads
it; an expression that fails is named, and takes no other with it. The budget is checked behind each program.
Any thread.

Facts are computed by one program a layer: a layer holds the facts that need no fact of the same or a later
layer. The last program computes all that remains: rules, risk, traits. (One program for everything would nest
one `cel.bind` for each fact, and the runtime's parser allows 32 levels.) Only if a program fails are its
expressions run one by one, to name those that fail.
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


class _Fact(NamedTuple):
    """A fact. `is_checked`: its type says too little of its value. `is_shown`: it is no step."""

    name: str
    id: str
    is_checked: bool
    is_shown: bool


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
        self._layers = [
            (
                [
                    _Fact(name, f"fact:{name}", types[name].name not in _PLAIN, not name.startswith(STEP))
                    for name in layer
                ],
                self.compiled(*(facts[name] for name in layer)),
            )
            for layer in _layers(facts)
        ]
        self._last_ids = tuple(others)
        self._last = self.compiled(*others.values())
        self._singles: dict[str, Program] = {}

    def compiled(self, *texts: str) -> Program:
        """These checked expressions as one program. Raises RuntimeError if they nest too deeply together."""
        return self._language.compile(texts, self._names)

    def single(self, id_: str) -> Program:
        """The program of one expression, by its id in `Floor.errors`; compiled when it is first needed."""
        if id_ not in self._singles:
            self._singles[id_] = self.compiled(self._texts[id_])
        return self._singles[id_]

    def run(self, inputs: dict[str, Any]) -> tuple[dict[str, Json], list[Any], dict[str, str]]:
        """The facts that are shown, the values of the other expressions in their order, and the errors by id.

        `inputs` are those of `Language.inputs` for the request that this thread works on; facts join them.
        The value of a failed expression is None.
        """
        facts: dict[str, Json] = {}
        errors: dict[str, str] = {}
        for layer, program in self._layers:
            values = program.run(inputs)
            budget.check()
            if isinstance(values, str):
                values = self._run_singly([fact.id for fact in layer], inputs, errors)
            for (name, id_, is_checked, is_shown), value in zip(layer, values, strict=True):
                if is_checked and not is_json(value):
                    errors[id_] = f"gave a {type(value).__name__}, not a plain value"
                elif not errors or id_ not in errors:
                    inputs[name] = value
                    if is_shown:
                        facts[name] = value
        values = self._last.run(inputs)
        budget.check()
        if isinstance(values, str):
            values = self._run_singly(self._last_ids, inputs, errors)
        return facts, values, errors

    def _run_singly(self, ids: Sequence[str], inputs: Mapping[str, Any], errors: dict[str, str]) -> list[Any]:
        """The value of each expression; None for one that failed, with its message in `errors`."""
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
