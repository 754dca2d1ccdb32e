"""path(..): paths that were labelled before the function was written, and hostile texts."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile import variants
from tests.structure_fuzz import run
from thor_policy.policy import yaml_text
from thor_policy.policy.structure.path import MAX_CHARS, MEMBERS, path

DATA = Path(__file__).parents[2] / "data" / "structure"
BASE = "/projects/shop"


def read(name: str) -> dict[str, list[Any]]:
    file = DATA / name
    return yaml_text.parse(file.read_text(encoding="utf-8"), dict[str, list[Any]], file)


CASES = [
    (label, *(item if isinstance(item, list) else (item, BASE)))
    for label, items in read("paths.yaml").items()
    for item in items
]
KINDS = [(kind, case) for kind, cases in read("kinds.yaml").items() if kind != "K21" for case in cases]
SEEDS = [text for _, text, _ in CASES]


def is_ordinary(text: str, base: str = BASE) -> bool:
    """Whether a pack may allow this file without a question."""
    result = path(text, base)
    doubts = ("opaque", "pattern", "secret", "steers")
    return bool(result["inside"]) and not any(result[member] for member in doubts)


def test_at_least_150_paths_are_labelled() -> None:
    assert len(CASES) >= 150
    assert len({(text, base) for _, text, base in CASES}) == len(CASES)


@pytest.mark.parametrize(("label", "text", "base"), CASES, ids=[f"{case[0]} {case[1]!a}" for case in CASES])
def test_only_an_ordinary_file_below_the_base_reads_as_one(label: str, text: str, base: str) -> None:
    result = path(text, base)
    assert is_ordinary(text, base) == (label == "inside")
    match label:
        case "outside":
            assert (result["opaque"], result["secret"], result["inside"]) == ("", "", False)
        case "secret":
            assert result["secret"]
        case "steers":
            assert result["steers"]
        case "opaque":
            assert result["opaque"] or result["pattern"]


@pytest.mark.parametrize(("kind", "case"), KINDS, ids=[f"{kind} {case['target']}" for kind, case in KINDS])
def test_further_files_of_kinds_that_once_passed_read_as_what_they_are(
    kind: str, case: dict[str, str]
) -> None:
    base = case.get("workspace", BASE)
    result = path(case["target"], base)
    match case["right"]:
        case "deny":
            assert result["secret"] == "store"
        case "review":
            assert result["secret"] or result["steers"]
        case _:
            assert is_ordinary(case["target"], base)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("/projects/shop/credentials.md", "name"),
        ("/projects/shop/.env.prod", "store"),
        ("/projects/shop/.env.staging", "store"),
        ("/projects/shop/.npmrc", "store"),
        ("/projects/shop/passwords.csv", "store"),
        ("tokens.json", "store"),
        ("./.env", "store"),
        ("docs/credentials.md", "name"),
        ("src/password_reset.py", "topic"),
        ("secrets/password_reset.py", "name"),
        ("a/credentials/b/choosing-a-password.md", "name"),
        ("docs/choosing-a-password.md", "topic"),
        ("choosing-a-password.txt", "store"),
        ("my-passwords.md", "name"),
        ("test_tokens.py", "topic"),
        ("access-token.md", "name"),
        ("accessToken.json", "store"),
        ("API_KEYS.md", "name"),
        ("stripe_key.txt", "name"),
        ("auth.json", "name"),
        ("secrets/db.json", "store"),
        ("secrets/README.md", "name"),
        ("src/tokens/colors.json", "name"),
        ("credentials.json.example", "name"),
        (".env.example", ""),
        ("example.env", ""),
        ("terraform.tfvars.example", ""),
        ("~/.ssh/id_ed25519.pub", ""),
        ("design-tokens.json", ""),
        ("src/environment.ts", ""),
        (".envoy.yaml", ""),
        ("src/tokenizer.py", ""),
        ("secretary.csv", ""),
    ],
)
def test_a_store_of_secrets_is_told_from_a_file_about_them(text: str, secret: str) -> None:
    assert path(text, BASE)["secret"] == secret


@pytest.mark.parametrize(
    "copy",
    [".env.bak", ".env~", ".env.old", ".env.swp", ".env (1)", "Copy of .env", ".env.gz", ".env2", ".env-prod",
     ".id_rsa.swp", "id_rsa.txt", "server.key.orig", "tokens.json.bak", "passwords.csv.gz.old"],
)  # fmt: skip
def test_a_copy_of_a_store_of_secrets_is_one(copy: str) -> None:
    assert path(copy, BASE)["secret"] == "store"


@pytest.mark.parametrize(
    ("text", "member"),
    [
        (".e''nv", "secret"),
        (".%65nv", "secret"),
        (".e\\nv", "secret"),
        ("config\\.env", "secret"),
        (".env\0.txt", "secret"),
        (".е\u200bnv", "secret"),
        (".ｅｎｖ", "secret"),
        (".énv", "secret"),
        ("HEAD:.env", "secret"),
        ("password_reset.py;.env", "secret"),
        ("@.env", "secret"),
        ("src;cat .env", "secret"),
        (".en?", "secret"),
        (".e[n]v", "secret"),
        ("*.pem", "secret"),
        (".gi\u200bt/config", "steers"),
        (".git./hooks/pre-commit", "steers"),
        (".git\\hooks\\pre-commit", "steers"),
        ("AGENTS.md ", "steers"),
        ("ＡＧＥＮＴＳ.md", "steers"),
    ],
)
def test_a_disguise_takes_nothing_from_secret_and_steers(text: str, member: str) -> None:
    assert path(text, BASE)[member]
    assert not is_ordinary(text)


@pytest.mark.parametrize(
    ("text", "steers"),
    [
        (".git/hooks/pre-commit", "git"),
        ("AGENTS.md", "agent"),
        (".claude/settings.json", "agent"),
        (".github/workflows/ci.yml", "pipeline"),
        (".vscode/tasks.json", "editor"),
        (".bashrc", "shell"),
        (".npmrc", "packages"),
        ("deploy/app.service", "system"),
        ("/etc/hosts", "system"),
        ("package.json", ""),
        ("Makefile", ""),
        ("conftest.py", ""),
        ("src/user.service.ts", ""),
        ("src/hooks/useCart.ts", ""),
        (".gitignore", ""),
    ],
)
def test_a_file_that_steers_says_what(text: str, steers: str) -> None:
    assert path(text, BASE)["steers"] == steers


@pytest.mark.parametrize(
    ("text", "base", "expected"),
    [
        ("src//a/./b/../c.py", BASE, "/projects/shop/src/a/c.py"),
        ("../x", BASE, "/projects/x"),
        ("/../../etc", BASE, "/etc"),
        ("$HOME/a/../b", BASE, "~/b"),
        ("~/../x", BASE, "~/../x"),
        ("file:///projects/shop/a.py", BASE, "/projects/shop/a.py"),
        ("a/../../b", "", "../b"),
    ],
)
def test_a_path_is_normalised(text: str, base: str, expected: str) -> None:
    assert path(text, base)["path"] == expected


@pytest.mark.parametrize(
    "base", ["", "/", "/projects", "projects/shop", "/projects/../etc", "~/shop", "/proc/self", "/dev/fd",
             "/etc/x", "/usr/bin", "/usr/lib/x", "/usr/local", "/var/lib", "/var/log", "/System/Library",
             "/projects/*", "C:\\shop", "/projects/$X", "/a/" + "b" * 2000]
)  # fmt: skip
def test_nothing_is_inside_a_base_that_bounds_nothing(base: str) -> None:
    for text in ("a.py", f"{base}/a.py", "/projects/shop/a.py"):
        result = path(text, base)
        assert (result["base_ok"], result["inside"], result["is_base"]) == (False, False, False)


@pytest.mark.parametrize("base", [BASE, f"{BASE}/", "/projects//shop", "/projects/./shop//"])
def test_a_base_is_the_same_however_it_is_spelt(base: str) -> None:
    assert path("/projects/shop/README.md", base)["inside"]
    assert path(".", base)["is_base"]
    assert not path(".", base)["inside"]


@pytest.mark.parametrize(
    ("text", "secret", "steers"),
    [
        ("src/*.py", "", ""),
        ("src/**/*.ts", "", ""),
        ("tests/test_[a-c].py", "", ""),
        ("src/[!a]?.c", "", ""),
        ("*.md", "", "agent"),
        ("build/*", "name", "git"),  # it may match tokens.json, and lefthook.yml
        ("site*.py", "", "packages"),
        ("*.json", "name", "agent"),
        ("tok*.json", "store", ""),
        ("cred*", "store", ""),
        ("*.pem", "store", ""),
        (".e*", "store", "editor"),
        (".s*/known", "store", "pipeline"),
        (".g*/hooks/x", "store", "git"),
    ],
)
def test_a_pattern_is_all_that_it_may_match(text: str, secret: str, steers: str) -> None:
    result = path(text, BASE)
    assert (result["opaque"], result["pattern"], result["inside"]) == ("", True, True)
    assert (result["secret"], result["steers"]) == (secret, steers)


@pytest.mark.parametrize("text", [".*", ".?/x", "..*", "a[", "[]", "a!b", "*" * 9, "a" * 65 + "*", "{a,b}"])
def test_a_pattern_that_may_lead_out_or_is_not_understood_is_opaque(text: str) -> None:
    assert path(text, BASE)["opaque"]


def test_a_name_of_a_route_is_no_pattern() -> None:
    assert is_ordinary("app/[slug]/page.tsx")


def test_words_in_the_base_make_no_secret_of_the_files_below() -> None:
    assert is_ordinary("README.csv", "/projects/secret-santa")
    assert path("/projects/secret-santa/list.csv", BASE)["secret"] == "store"


def test_a_text_beyond_the_limit_is_opaque() -> None:
    assert path("a/" * MAX_CHARS, BASE)["opaque"] == "has more than 4096 characters"


def check(text: str, base: str) -> None:
    """What holds for the result of every text."""
    result = path(text, base)
    assert set(result) == MEMBERS
    assert result["secret"] in ("", "topic", "name", "store")
    if result["opaque"]:
        assert (result["inside"], result["is_base"], result["path"]) == (False, False, "")
    elif result["inside"]:
        meant = re.sub("^file://(localhost)?", "", text, flags=re.IGNORECASE)
        assert posixpath.normpath(posixpath.join(BASE, meant)).lstrip("/").startswith(BASE.lstrip("/") + "/")
        assert text.isprintable()
        assert not set(meant) & set("\\%$`'\"|;&<>{}:")
        assert result["pattern"] or not set(text) & set("*?!^")


@given(st.text() | st.from_regex(r"\A[a-zA-Z./~$-]{0,30}\Z"), st.sampled_from([BASE, f"{BASE}/"]))
def test_any_text_gives_a_value(text: str, base: str) -> None:
    check(text, base)


@given(st.text())
def test_any_base_gives_a_value(base: str) -> None:
    assert set(path("src/a.py", base)) == MEMBERS


def test_hostile_texts_give_a_value() -> None:
    for text in variants(SEEDS, 300):
        check(text, BASE)


@pytest.mark.soak
def test_a_hundred_thousand_hostile_texts_end_in_time_and_leave_memory_flat() -> None:
    path("ünïcode", BASE)  # loads the table of confusables
    texts = variants(SEEDS, 100_000)
    run(lambda text: check(text, BASE), texts, limit_s=0.1, settled_after=50_000, max_growth_kib=4096)
