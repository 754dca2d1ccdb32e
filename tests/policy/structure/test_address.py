"""Classes of addresses: the registries of IANA, addresses inside others, and names."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.policy.structure.address import CLASSES, of_host, of_ip, worst


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("8.8.8.8", "public"),
        ("9.255.255.255", "public"),
        ("11.0.0.0", "public"),
        ("172.15.255.255", "public"),
        ("172.32.0.0", "public"),
        ("100.63.255.255", "public"),
        ("100.64.0.0", "cgnat"),
        ("100.127.255.255", "cgnat"),
        ("169.254.0.1", "link_local"),
        ("0.0.0.1", "reserved"),
        ("192.0.2.1", "reserved"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.1", "reserved"),
        ("2606:4700::1", "public"),
        ("2001:db8::1", "reserved"),
        ("4000::1", "reserved"),
        ("fec0::1", "private"),
        ("fdff::1", "private"),
    ],
)
def test_an_address_has_the_class_of_its_network(text: str, kind: str) -> None:
    assert of_ip(ipaddress.ip_address(text))[0] == kind


def test_no_address_that_the_library_calls_private_is_public() -> None:
    networks = (*ipaddress._IPv4Constants._private_networks, *ipaddress._IPv6Constants._private_networks)  # type: ignore[attr-defined]
    for network in networks:
        for ip in (network[0], network[-1]):
            assert of_ip(ip)[0] != "public", ip


@given(st.ip_addresses(v=4))
def test_an_address_has_the_same_class_in_each_form_that_holds_it(ip: ipaddress.IPv4Address) -> None:
    kind, text = of_ip(ip)
    number = int(ip)
    holders = [
        0xFFFF << 32 | number,  # IPv4-mapped
        0xFFFF << 48 | number,  # IPv4-translated
        0x64FF9B << 96 | number,  # NAT64
        0x2002 << 112 | number << 80,  # 6to4
        0x20010000 << 96 | 0x08080808 << 64 | number ^ 0xFFFFFFFF,  # Teredo, by a public server
    ]
    for holder in holders:
        assert of_ip(ipaddress.IPv6Address(holder)) == (kind, text)
    if kind != "public":
        assert of_host(f"{ip}.nip.io") == (kind, text)
        assert of_host(f"a.{str(ip).replace('.', '-')}.sslip.io") == (kind, text)
        assert of_host(f"{number:08x}.nip.io") == (kind, text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("2001:4860::5efe:8.8.8.8", "public"),
        ("2001:4860::200:5efe:10.0.0.1", "private"),
        ("fe80::5efe:8.8.8.8", "link_local"),
        ("fd00::5efe:8.8.8.8", "private"),
    ],
)
def test_an_isatap_address_has_the_worse_class_of_its_network_and_what_it_holds(text: str, kind: str) -> None:
    assert of_ip(ipaddress.ip_address(text))[0] == kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        # 6to4, whose last 64 bits say ISATAP
        ("2002:7f00:1::5efe:8.8.8.8", "loopback"),
        ("2002:a9fe:a9fe::5efe:8.8.8.8", "metadata"),
        ("2002:a00:1::5efe:8.8.8.8", "private"),
        ("2002:c0a8:101::200:5efe:8.8.8.8", "private"),
        ("2002:6440:1::5efe:1.1.1.1", "cgnat"),
        ("2002:a9fe:1::200:5efe:1.1.1.1", "link_local"),
        ("2002:e000:1::5efe:1.1.1.1", "multicast"),
        # Teredo, whose flags and port do
        ("2001:0:808:808:0:5efe:80ff:fffe", "loopback"),
        ("2001:0:808:808:200:5efe:5601:5601", "metadata"),
        ("2001:0:a00:1:0:5efe:f7f7:f7f7", "private"),
        ("2001:0:7f00:1:0:5efe:f7f7:f7f7", "loopback"),
    ],
)
def test_an_isatap_address_in_an_address_that_holds_another_has_the_worst_class(text: str, kind: str) -> None:
    assert of_ip(ipaddress.ip_address(text))[0] == kind


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("example.com", ""),
        ("localhost.example.com", ""),
        ("internal.example.com", ""),
        ("ec2-52-1-2-3.compute-1.amazonaws.com", ""),
        ("8.8.8.8.nip.io", ""),
        ("nip.io", ""),
        ("2852039166.nip.io", "reserved"),
        ("metadata.google.internal", "metadata"),
        ("metadata", "metadata"),
        ("x.internal", "private"),
        ("kubernetes.default.svc", "private"),
        ("kubernetes.default", "private"),
        ("a.b.localhost", "loopback"),
        ("a.localtest.me", "loopback"),
        ("--1.sslip.io", "loopback"),
        ("intranet", "private"),
        ("", ""),
        ("99999..", ""),
        ("a" * 254, ""),
    ],
)
def test_a_name_has_the_class_of_what_it_leads_to(host: str, kind: str) -> None:
    assert of_host(host)[0] == kind


def test_the_worst_class_wins_and_public_is_never_worse_than_unknown() -> None:
    assert worst([("public", "a"), ("private", "b"), ("metadata", "c"), ("", "")]) == ("metadata", "c")
    assert worst([("public", "a"), ("", "")]) == ("", "")
    assert worst([]) == ("", "")
    assert CLASSES[-1] == "public"


@given(st.text())
def test_any_host_gives_a_class(host: str) -> None:
    assert of_host(host)[0] in CLASSES
