"""IP addresses and ranges: `cidr(text)` and `cidr.inside(inner, outer)`.

Owns the classes of addresses, after IANA's registries of special-purpose addresses
(https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry). Invariant: a
range has a class only if all of its addresses have it; otherwise it is `mixed`. Pure; any thread.

Only the plain spellings are read: four decimal numbers without leading zeros, or hexadecimal groups, and a
prefix length. Other spellings (`0251.0376.0.1`, `10.1`, `0x0a000001`, masks, zones, ports) are opaque:
programs disagree about them. So are IPv6 addresses in parts that were never allocated: `cafe::` is rather a
word. An IPv4 address in IPv6 (`::ffff:10.0.0.1`) is the IPv4 address, as for the network.
"""

from __future__ import annotations

import functools
import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TypedDict

#: Longest text that can be an address with a prefix length.
MAX_CHARS = 49
#: The most that `addresses` says: an integer of rules has 64 bits.
MANY = 2**63 - 1
_PLAIN = re.compile(r"[0-9a-fA-F:.]+(?:/(?:0|[1-9][0-9]{0,2}))?")
_MAPPED = IPv6Network("::ffff:0:0/96")
#: Blocks and their classes; what is in no block has the class of the version.
_V4 = {
    IPv4Network(block): kind
    for kind, blocks in {
        "unspecified": "0.0.0.0/32",
        "private": "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16",
        "cgnat": "100.64.0.0/10",
        "loopback": "127.0.0.0/8",
        "link_local": "169.254.0.0/16",
        "multicast": "224.0.0.0/4",
        "reserved": "0.0.0.0/8 192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 198.18.0.0/15 198.51.100.0/24"
        " 203.0.113.0/24 240.0.0.0/4",
    }.items()
    for block in blocks.split()
}
_V6 = {
    IPv6Network(block): kind
    for kind, blocks in {
        "unspecified": "::/128",
        "loopback": "::1/128",
        "private": "fc00::/7",
        "link_local": "fe80::/10",
        "multicast": "ff00::/8",
        "public": "2000::/3",
        # Those that hold IPv4 addresses, are for documents, or for protocols.
        "reserved": "64:ff9b::/96 64:ff9b:1::/48 100::/64 2001::/23 2001:db8::/32 2002::/16 3fff::/20"
        " 5f00::/16",
    }.items()
    for block in blocks.split()
}
#: The class of IPv6 addresses in no block. Nobody has one.
_UNALLOCATED = "unallocated"


#: A range. `opaque` is why it was not understood, "" if it was. If it was not, the rest is empty.
#: `class` is loopback, private, link_local, cgnat, multicast, reserved, unspecified, public or mixed.
#: `host_bits` is true for an address with a prefix length (10.0.0.9/24). `addresses` is at most MANY.
Range = TypedDict(
    "Range",
    {
        "opaque": str,
        "version": int,
        "prefix": int,
        "first": str,
        "last": str,
        "class": str,
        "addresses": int,
        "host_bits": bool,
    },
)


def cidr(text: str) -> Range:
    """The range, or single address, that a text is. The result is shared: do not change it."""
    if len(text) > MAX_CHARS:
        return _nothing("the text is too long for an address")
    return _cidr(text)


@functools.lru_cache(maxsize=1024)
def _cidr(text: str) -> Range:
    network = _network(text)
    if isinstance(network, str):
        return _nothing(network)
    kind = _class_of(network)
    if kind == _UNALLOCATED:
        return _nothing("the address lies in a part of IPv6 that was never allocated")
    return {
        "opaque": "",
        "version": network.version,
        "prefix": network.prefixlen,
        "first": str(network[0]),
        "last": str(network[-1]),
        "class": kind,
        "addresses": min(network.num_addresses, MANY),
        "host_bits": _has_host_bits(text),
    }


def inside(inner: str, outer: str) -> bool:
    """True if all addresses of a range are in another. Raises ValueError if either is opaque."""
    networks = []
    for text in (inner, outer):
        if reason := cidr(text)["opaque"]:
            raise ValueError(f"{text[:MAX_CHARS]!a}: {reason}")
        networks.append(_network(text))
    small, large = networks
    if isinstance(small, IPv4Network) and isinstance(large, IPv4Network):
        return small.subnet_of(large)
    if isinstance(small, IPv6Network) and isinstance(large, IPv6Network):
        return small.subnet_of(large)
    return False


def _nothing(reason: str) -> Range:
    return {
        "opaque": reason,
        "version": 0,
        "prefix": 0,
        "first": "",
        "last": "",
        "class": "",
        "addresses": 0,
        "host_bits": False,
    }


def _network(text: str) -> IPv4Network | IPv6Network | str:
    """The network of a text, or why there is none."""
    if not _PLAIN.fullmatch(text):
        return "the text is no address and no range: write 10.0.0.0/8 or fd00::/8"
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return "the text is no address and no range: write 10.0.0.0/8 or fd00::/8"
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network[0]) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def _has_host_bits(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return True
    return False


def _class_of(network: IPv4Network | IPv6Network) -> str:
    """The class of the smallest block around a network; `mixed` if a block of another class is in it."""
    if isinstance(network, IPv4Network):
        around = [(block.prefixlen, kind) for block, kind in _V4.items() if network.subnet_of(block)]
        within = {kind for block, kind in _V4.items() if block.subnet_of(network)}
    else:
        around = [(block.prefixlen, kind) for block, kind in _V6.items() if network.subnet_of(block)]
        within = {kind for block, kind in _V6.items() if block.subnet_of(network)}
    _, kind = max(around, default=(0, "public" if network.version == 4 else _UNALLOCATED))
    return kind if within <= {kind} else "mixed"
