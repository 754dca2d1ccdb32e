"""People: whom a caller stands for, in which roles, and entries that cannot be used."""

from __future__ import annotations

import os
import pwd
from dataclasses import replace

import pytest

from thor_policy.config import Config
from thor_policy.core.approvals import Person
from thor_policy.core.errors import ConfigError
from thor_policy.core.requests import Caller
from thor_policy.security.people import People


def uid(number: int) -> Caller:
    return Caller(transport="ipc", uid=number, gid=number, pid=1)


def key(name: str) -> Caller:
    return Caller(transport="tcp", key=name)


def person(caller: Caller, *entries: str) -> Person:
    known = People(entries).of(caller)
    assert known is not None
    return known


def test_a_caller_is_the_person_of_its_entry_with_roles_and_groups() -> None:
    kim = person(uid(61001), "uid:61001=Kim Doe;manager+lead;finance+board")
    assert (kim.name, kim.roles, kim.groups) == ("Kim Doe", ("manager", "lead"), ("finance", "board"))
    assert person(uid(61001), "uid:61001=kim").roles == ()
    assert person(uid(61001), "uid:61001=kim;;board").groups == ("board",)
    assert person(key("laptop"), "key:laptop=kim;manager").roles == ("manager",)


def test_a_caller_without_an_entry_is_nobody() -> None:
    people = People(["uid:61001=kim;manager", "key:laptop=lee;manager"])
    for caller in (uid(61002), key("61001"), key("other"), Caller(transport="inproc"), key("uid:61001")):
        assert people.of(caller) is None
    assert People([]).of(uid(0)) is None


def test_a_key_is_never_a_uid_whatever_it_is_called() -> None:
    people = People(["uid:61001=kim;manager"])
    both = Caller(transport="tcp", uid=61001, key="laptop")
    assert people.of(both) is None


def test_callers_of_one_name_are_one_person_with_the_roles_of_both() -> None:
    entries = ("uid:61001=Kim;manager;board", "key:laptop=KIM;security+manager")
    for caller in (uid(61001), key("laptop")):
        kim = person(caller, *entries)
        assert (kim.name, kim.roles, kim.groups) == ("Kim", ("manager", "security"), ("board",))
        assert {"uid:61001", "61001", "key:laptop", "laptop"} <= set(kim.aliases)


@pytest.mark.parametrize(
    "other", ["KIM", "\uff4b\uff49\uff4d", "k im", "ki\u200bm", "kim\ufe0f", "k\u034fim", "kim\u3164"]
)
def test_another_spelling_of_a_name_is_no_other_person(other: str) -> None:
    people = People(["uid:61001=kim;manager", f"uid:61002={other};security"])
    assert people.of(uid(61001)) == people.of(uid(61002)) == people.named(other) == people.named("kim")


def test_a_person_is_called_by_user_name_and_uid_too() -> None:
    user = pwd.getpwuid(os.geteuid())
    for entry in (f"user:{user.pw_name}=Somebody", f"uid:{user.pw_uid}=Somebody"):
        somebody = person(uid(user.pw_uid), entry)
        for name in (user.pw_name, f"user:{user.pw_name}", str(user.pw_uid), "somebody"):
            assert somebody.is_called(name)


def test_one_caller_is_not_two_persons() -> None:
    with pytest.raises(ConfigError, match="a caller is one person"):
        People(["uid:61001=kim;manager", "uid:61001=lee;security"])
    user = pwd.getpwuid(os.geteuid())
    with pytest.raises(ConfigError, match="a caller is one person"):
        People([f"uid:{user.pw_uid}=kim", f"user:{user.pw_name}=lee"])


def test_a_name_that_nobody_can_see_is_refused() -> None:
    for name in ("\u200b", "\u3164", "\ufe0f\u00ad"):
        with pytest.raises(ConfigError, match="nobody can see"):
            People([f"uid:61001={name};manager"])


def test_an_unknown_user_is_named() -> None:
    with pytest.raises(ConfigError, match="no user nobody-of-that-name"):
        People(["user:nobody-of-that-name=kim"])


@pytest.mark.parametrize(
    "entry",
    [
        *("kim", "uid:61001", "uid:61001=", "uid:x=kim", "gid:1=kim", "uid:61001=kim;a b", "uid:61001=kim;A"),
        *(
            "uid:61001=kim;a;b;c",
            "uid:61001=a+b",
            "uid:61001= kim",
            "uid:-1=kim",
            "uid:\u0661=kim",
            "uid:61001000001=kim",
        ),
    ],
)
def test_an_entry_that_cannot_be_read_is_refused_with_an_example(config: Config, entry: str) -> None:
    with pytest.raises(ConfigError, match=r"people holds .*user:NAME=kim"):
        replace(config, people=(entry,))
