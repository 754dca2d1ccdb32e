"""JUnit XML of a run, for tools that collect test results.

Owns that file. Invariant: the XML is well-formed whatever a scenario holds, its counts match its elements,
and it holds a failure or an error exactly if the conclusion has a status other than 0. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from xml.etree import ElementTree

from thor_policy.core.escape import visible
from thor_policy.suites.conclusions import Conclusion, details
from thor_policy.suites.run_files import Item, rounds, worst

#: Characters that XML 1.0 cannot hold, or that a parser changes when it normalises line ends.
_UNFIT = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NOT_PASSED = ("failure", "error", "skipped")


def junit(conclusion: Conclusion) -> bytes:
    """The file of a run: one test suite for each suite, one test case for each scenario (its worst round).

    Each point of the conclusion is a case too, in the suite `run`. With a gate, failed scenarios are shown as
    skipped, because the case of the gate says whether they matter.
    """
    run = conclusion.run
    seconds = {
        key: sum(item.total_ms for item in answers) / 1000 for key, answers in rounds(run.results).items()
    }
    suites: dict[str, list[ElementTree.Element]] = {}
    for key, item in worst(run.results).items():
        suites.setdefault(item.suite, []).append(_case(conclusion, item, seconds[key]))
    for point in conclusion.points:
        case = _element("testcase", classname="thorpolicy", name=point.name, time="0.000")
        if point.reasons:
            kind = "failure" if point.status == 1 else "error"
            case.append(_not_passed(kind, point.reasons, point.name))
        suites.setdefault("thorpolicy", []).append(case)
    properties = {"version": run.version, "where": run.where, "machine": run.machine}
    for judge in run.judges:
        properties[f"pack.{judge.pack.name}"] = f"{judge.pack.version} {judge.pack.sha256}"
        properties[f"model.{judge.pack.name}"] = f"{judge.model} {judge.model_sha256}"
    return _file([_suite(name, cases, run.at, properties) for name, cases in suites.items()])


def could_not_run(message: str, at: str) -> bytes:
    """The file of a run that could not begin: one case in error, so that a missing run is no success."""
    case = _element("testcase", classname="thorpolicy", name="thorpolicy test", time="0.000")
    case.append(_not_passed("error", [message], "could not run"))
    return _file([_suite("thorpolicy test", [case], at, {})])


def _file(suites: Sequence[ElementTree.Element]) -> bytes:
    root = _element("testsuites", name="thorpolicy test")
    for count in ("tests", "failures", "errors"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in suites)))
    root.set("time", f"{sum(float(suite.get('time', '0')) for suite in suites):.3f}")
    root.extend(suites)
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _suite(
    name: str, cases: Sequence[ElementTree.Element], at: str, properties: dict[str, str]
) -> ElementTree.Element:
    counts = {kind: sum(case.find(kind) is not None for case in cases) for kind in _NOT_PASSED}
    suite = _element(
        "testsuite",
        name=name,
        tests=str(len(cases)),
        failures=str(counts["failure"]),
        errors=str(counts["error"]),
        skipped=str(counts["skipped"]),
        time=f"{sum(float(case.get('time', '0')) for case in cases):.3f}",
        timestamp=at.removesuffix("Z").partition("+")[0],
        hostname="localhost",
    )
    if properties:
        listed = _element("properties")
        listed.extend(_element("property", name=name, value=value) for name, value in properties.items())
        suite.append(listed)
    suite.extend(cases)
    return suite


def _case(conclusion: Conclusion, item: Item, seconds: float) -> ElementTree.Element:
    case = _element("testcase", classname=item.suite, name=f"{item.id} {item.title}", time=f"{seconds:.3f}")
    if item.status == "skipped":
        case.append(_element("skipped", message="; ".join(item.misses)))
    elif item.status == "failed" and conclusion.gate is not None:
        message = f"{item.result}; the gate decides: {'; '.join(item.misses)}"
        case.append(_element("skipped", message=message))
    elif item.status != "passed":
        kind = "failure" if item.status == "failed" else "error"
        lines = [f"{name}: {value}" for name, value in details(item)[1:]]
        if command := conclusion.command(item):
            lines.append(f"see: {command}")
        case.append(_not_passed(kind, item.misses, item.result, lines))
    if item.decision_id is not None:
        out = _element("system-out")
        out.text = _fit(f"decision {item.decision_id}: {item.outcome}, by {item.tier}")
        case.append(out)
    return case


def _not_passed(
    kind: str, reasons: Iterable[str], type: str, lines: Iterable[str] = ()
) -> ElementTree.Element:
    message = list(reasons)
    element = _element(kind, message="; ".join(message), type=type)
    element.text = _fit("\n".join([*message, *lines]))
    return element


def _element(tag: str, /, **attributes: str) -> ElementTree.Element:
    return ElementTree.Element(tag, {name: _fit(value) for name, value in attributes.items()})


def _fit(text: str) -> str:
    """The text with an escape for every character that XML cannot hold, and for every one that hides text."""
    return visible(_UNFIT.sub(lambda match: f"\\x{ord(match[0]):02x}", text), lines=True)
