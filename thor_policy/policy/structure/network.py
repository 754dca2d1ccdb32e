"""IP addresses and ranges: `cidr(text)` and `cidr.inside(inner, outer)`.

Owns the reading of a text as a range. Invariant: a range has a class (of `address.BLOCKS`) only if all of its
addresses have it; otherwise it is `mixed`. Pure; any thread.

Only the plain spellings are read: four decimal numbers without leading zeros, or hexadecimal groups, and a
prefix length. Other spellings (`0251.0376.0.1`, `10.1`, `0x0a000001`, masks, zones, ports) are opaque:
programs disagree about them. So are IPv6 addresses in parts that were never allocated: `cafe::` is rather a
word. An IPv4 address in IPv6 (`::ffff:10.0.0.1`) is the IPv4 address, as for the network.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TypeAlias, TypedDict

from thor_policy.policy.structure.address import BLOCKS
from thor_policy.policy.text_cache import kept

_Network: TypeAlias = IPv4Network | IPv6Network

#: Longest text that can be an address with a prefix length.
MAX_CHARS = 49
#: The most that `addresses` says: an integer of rules has 64 bits.
MANY = 2**63 - 1
_PLAIN = re.compile(r"[0-9a-fA-F:.]+(?:/(?:0|[1-9][0-9]{0,2}))?")
_MAPPED = IPv6Network("::ffff:0:0/96")
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


@kept()
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
        network = cidr(text)["opaque"] or _network(text)
        if isinstance(network, str):
            raise ValueError(f"{text[:MAX_CHARS]!a}: {network}")
        networks.append(network)
    return _is_within(*networks)


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


def _network(text: str) -> _Network | str:
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


def _class_of(network: _Network) -> str:
    """The class of the smallest block around a network; `mixed` if a block of another class is in it."""
    around = [(block.prefixlen, kind) for block, kind in BLOCKS.items() if _is_within(network, block)]
    within = {kind for block, kind in BLOCKS.items() if _is_within(block, network)}
    _, kind = max(around, default=(0, "public" if network.version == 4 else _UNALLOCATED))
    return kind if within <= {kind} else "mixed"


def _is_within(inner: _Network, outer: _Network) -> bool:
    return (
        inner.version == outer.version
        and int(outer.network_address) <= int(inner.network_address)
        and int(inner.broadcast_address) <= int(outer.broadcast_address)
    )
