"""Similarity: groups equal those of all pairs, and held-out items have no near-duplicate elsewhere."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from thor_policy.learning.similarity import alike, groups, held_out, shingles

SETS = st.lists(st.frozensets(st.sampled_from("abcdefghijklmnop"), max_size=9), max_size=24)
THRESHOLDS = st.sampled_from([0.1, 0.3, 0.5, 0.55, 0.6, 0.7, 0.9, 1.0])


def test_shingles_are_runs_of_three_words() -> None:
    assert shingles("Who: ivo  does\ndeploy") == {"who: ivo does", "ivo does deploy"}
    assert shingles("one TWO") == {"one two"}
    assert shingles(" ") == frozenset()


def test_alike_is_the_share_of_common_features() -> None:
    assert alike({"a", "b"}, {"b", "c"}) == 1 / 3
    assert alike(set(), set()) == 0
    assert alike({"a"}, {"a"}) == 1


@given(SETS, THRESHOLDS)
def test_groups_equal_those_of_comparing_every_pair(things: list[frozenset[str]], threshold: float) -> None:
    label = list(range(len(things)))
    for index in range(len(things)):
        for other in range(index):
            if alike(things[index], things[other]) >= threshold - 1e-9:
                label = [label[other] if at == label[index] else at for at in label]
    expected = {frozenset(i for i in range(len(things)) if label[i] == name) for name in label}
    result = groups(things, threshold)
    assert {frozenset(group) for group in result} == expected
    assert sorted(index for group in result for index in group) == list(range(len(things)))


@given(SETS, THRESHOLDS, st.floats(0, 1))
def test_held_out_items_have_no_near_duplicate_elsewhere_and_are_at_most_the_share(
    things: list[frozenset[str]], threshold: float, share: float
) -> None:
    names = [f"n{index}" for index in range(len(things))]
    out = held_out(groups(things, threshold), names, share)
    assert len(out) <= share * len(things) + 1e-6
    for index in out:
        for other in set(range(len(things))) - out:
            assert alike(things[index], things[other]) < threshold


@given(SETS, THRESHOLDS, st.randoms(use_true_random=False))
def test_the_order_of_items_changes_no_group(
    things: list[frozenset[str]], threshold: float, chance: random.Random
) -> None:
    order = list(range(len(things)))
    chance.shuffle(order)
    mixed = [things[index] for index in order]
    names = [f"n{index}" for index in range(len(things))]

    def named(grouped: list[list[int]], who: list[str]) -> set[frozenset[str]]:
        return {frozenset(who[index] for index in group) for group in grouped}

    mixed_names = [names[index] for index in order]
    plain, shuffled = groups(things, threshold), groups(mixed, threshold)
    assert named(plain, names) == named(shuffled, mixed_names)
    out = {names[index] for index in held_out(plain, names, 0.3)}
    assert out == {mixed_names[index] for index in held_out(shuffled, mixed_names, 0.3)}
