"""The table of resident packs: after any change one pack is active, and none has two roles."""

from __future__ import annotations

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.build import write_pack
from thor_policy.core.engine import LoadedPrefix
from thor_policy.core.errors import RequestError
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Pack
from thor_policy.policy.residents import Resident, Residents
from thor_policy.testing import StubEngine


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return pack_files.load(write_pack(tmp_path_factory.mktemp("small")))


def resident_of(pack: Pack, version: str) -> Resident:
    """A pack that differs in version and digest, as if it were resident."""
    made = copy.copy(pack)
    made.info = replace(pack.info, version=version, sha256=version.zfill(2) * 32)
    return Resident(made, StubEngine().model, LoadedPrefix(prefix_tokens=1, restored=False, golden_scores=2))


class TestResidents:
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_after_any_changes_one_pack_is_active_and_none_has_two_roles(
        self, pack: Pack, data: st.DataObject
    ) -> None:
        made = [resident_of(pack, str(number)) for number in range(6)]
        table, spare = Residents(made[0]), made[1:]
        for _ in range(data.draw(st.integers(0, 12))):
            present = list(table)
            before = {resident.key for resident in table}
            chosen = data.draw(st.sampled_from(present))
            change = data.draw(
                st.sampled_from(["join", "leave", "activate", "shadow", "unshadow", "exchange"])
            )
            if change == "join" and spare:
                table = table.with_candidate(new := spare.pop())
                before.add(new.key)
                assert table.role_of(new) == "candidate"
            elif change == "leave" and chosen is not table.active:
                table = table.without(chosen)
                before.remove(chosen.key)
                spare.append(chosen)
            elif change == "activate":
                table = table.with_active(chosen)
                assert table.role_of(chosen) == "active"
            elif change == "shadow" and chosen is not table.active:
                table = table.with_shadow(chosen)
                assert table.role_of(chosen) == "shadow"
            elif change == "unshadow":
                table = table.with_shadow(None)
                assert table.shadow is None
            elif change == "exchange" and spare:
                role = table.role_of(chosen)
                table = table.with_replaced(chosen, new := spare.pop())
                before = before - {chosen.key} | {new.key}
                spare.append(chosen)
                assert table.role_of(new) == role
            keys = [resident.key for resident in table]
            assert len(keys) == len(set(keys)) == len(table)
            assert set(keys) == before
            assert sum(table.role_of(resident) == "active" for resident in table) == 1

    def test_a_pack_is_named_by_name_version_or_digest(self, pack: Pack) -> None:
        first, second, third = (resident_of(pack, version) for version in ("1", "2", "3"))
        table = Residents(first, candidates=(second, third))
        assert table.named("small") is first
        assert table.named("small@2") is second
        assert table.named(third.pack.info.sha256[:12]) is third
        for name in ("small@4", third.pack.info.sha256[:11], "", "other"):
            with pytest.raises(RequestError, match="is not loaded"):
                table.named(name)

    def test_an_ambiguous_name_without_an_active_pack_is_refused(self, pack: Pack) -> None:
        first, second, third = (resident_of(pack, version) for version in ("1", "2", "3"))
        first.pack.info = replace(first.pack.info, name="large")
        with pytest.raises(RequestError, match="give its digest"):
            Residents(first, candidates=(second, third)).named("small")

    def test_long_texts_are_those_of_the_pack_that_a_request_names(self, pack: Pack) -> None:
        active, other = resident_of(pack, "1"), resident_of(pack, "2")
        active.pack.long_texts, other.pack.long_texts = {"context.a": 5_000}, {"context.b": 6_000}
        table = Residents(active, candidates=(other,))
        assert table.long_texts(None) == {"context.a": 5_000}
        assert table.long_texts(f"{pack.info.name}@2") == {"context.b": 6_000}
        assert table.long_texts("nobody") == {}
