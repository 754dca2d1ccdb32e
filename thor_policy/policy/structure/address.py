"""What a host is: this machine, a private network, instance metadata, or the public internet.

Owns the tables of networks and of names. Invariant: an address inside another one (IPv4-mapped, NAT64, 6to4,
Teredo, ISATAP, a name such as 10-0-0-1.nip.io) has the class of what it leads to. Pure, without a look-up in
DNS: any other name may resolve to any address, which nothing here can see. Any thread.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TypeAlias

_Ip: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

#: A longer host is no name of DNS.
MAX_HOST_CHARS = 253
#: Letters of a host that older clients replace by others, or leave out (IDNA 2003), and newer ones keep.
DEVIATIONS = frozenset("ßς\u200c\u200d")
#: Every class, the one to fear most first. "": a name that says nothing about its address.
CLASSES = (
    "metadata", "loopback", "unspecified", "link_local", "private", "cgnat", "multicast", "reserved", "",
    "public",
)  # fmt: skip

#: Addresses that serve credentials or settings of the machine to whoever asks from inside.
_METADATA = {
    "169.254.169.254",  # AWS, Azure, Google Cloud, DigitalOcean, OpenStack, Oracle
    "169.254.169.253", "169.254.169.123",  # AWS: DNS and time
    "169.254.170.2", "169.254.170.23",  # AWS: credentials of ECS tasks, of EKS pods
    "169.254.0.23",  # Tencent
    "169.254.42.42", "fd00:42::42",  # Scaleway
    "100.100.100.200",  # Alibaba
    "192.0.0.192",  # Oracle, classic
    "168.63.129.16",  # Azure, WireServer
    "fd00:ec2::254", "fd00:ec2::23",  # AWS
    "fd20:ce::254",  # Google Cloud
    "fe80::a9fe:a9fe",  # OpenStack
}  # fmt: skip
#: Classes of blocks, after IANA's registries of special-purpose addresses; the smallest block decides
#: (https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry).
BLOCKS = {
    ipaddress.ip_network(block): kind
    for kind, blocks in {
        "unspecified": "0.0.0.0/32 ::/128",
        "loopback": "127.0.0.0/8 ::1/128",
        "private": "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7",
        "link_local": "169.254.0.0/16 fe80::/10",
        "cgnat": "100.64.0.0/10",
        "multicast": "224.0.0.0/4 ff00::/8",
        "public": "2000::/3",
        # Those of IPv6 hold IPv4 addresses, are for documents, or for protocols.
        "reserved": "0.0.0.0/8 192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 198.18.0.0/15 198.51.100.0/24"
        " 203.0.113.0/24 240.0.0.0/4 64:ff9b::/96 64:ff9b:1::/48 100::/64 2001::/23 2001:db8::/32 2002::/16"
        " 3fff::/20 5f00::/16",
    }.items()
    for block in blocks.split()
}
#: What a host is whose address is in no block, or in one that networks use for hosts of their own.
_OF_HOSTS = {
    ipaddress.ip_network("0.0.0.0/0"): "public",
    ipaddress.ip_network("::/0"): "reserved",
    ipaddress.ip_network("fec0::/10"): "private",
    ipaddress.ip_network("64:ff9b:1::/48"): "private",
}
#: Network, mask and class of each block, the smallest block first.
_BY_VERSION = {
    version: [
        (int(block.network_address), int(block.netmask), kind)
        for block, kind in sorted((BLOCKS | _OF_HOSTS).items(), key=lambda pair: -pair[0].prefixlen)
        if block.version == version
    ]
    for version in (4, 6)
}
#: IPv6 prefixes before an IPv4 address, as the first 96 bits: mapped, translated, compatible, NAT64.
_BEFORE_IPV4 = {
    int(ipaddress.ip_address(prefix)) >> 32 for prefix in ("::ffff:0:0", "::ffff:0:0:0", "64:ff9b::")
}

#: Names, and endings of names (with the dot), by what they lead to.
_NAMES = {
    "metadata": "metadata",
    "metadata.google.internal": "metadata",
    "metadata.goog": "metadata",
    "metadata.azure.internal": "metadata",
    "metadata.tencentyun.com": "metadata",
    "metadata.packet.net": "metadata",
    "metadata.platformequinix.com": "metadata",
    "rancher-metadata": "metadata",
    "instance-data": "metadata",
    "instance-data.ec2.internal": "metadata",
    "localhost6": "loopback",
    "ip6-localhost": "loopback",
    "ip6-loopback": "loopback",
    "localhost.localdomain": "loopback",
    "localhost6.localdomain6": "loopback",
}
#: Endings that are not in the public DNS (RFC 6761, 6762, 8375; .internal), or that lead to 127.0.0.1.
_ENDINGS = {
    "localhost": "loopback",
    "localtest.me": "loopback",
    "lvh.me": "loopback",
    "vcap.me": "loopback",
    "lacolhost.com": "loopback",
    "localho.st": "loopback",
    "local.gd": "loopback",
    "fuf.me": "loopback",
    "internal": "private",
    "local": "private",
    "localdomain": "private",
    "lan": "private",
    "home": "private",
    "home.arpa": "private",
    "corp": "private",
    "intranet": "private",
    "private": "private",
    "test": "private",
    "svc": "private",
    "default": "private",  # services of Kubernetes in its first namespace
    "consul": "private",
    "cluster.local": "private",
}
#: An IPv4 address in a name: 10.0.0.1.nip.io, a-10-0-0-1.sslip.io, ip-10-0-0-1.example.com.
_IN_A_NAME = re.compile(r"(?<![0-9])(\d{1,3})[.-](\d{1,3})[.-](\d{1,3})[.-](\d{1,3})(?![0-9])")
#: Services whose names resolve to the address that they hold, and the hexadecimal form that these read.
_RESOLVES_ITSELF = re.compile(r"(?:^|\.)(?:[sn]ip\.io|sslip\.io|xip\.io|rbndr\.us|1u\.ms|traefik\.me)$")
_HEXADECIMAL = re.compile(r"(?<![0-9a-z])(?:0x)?([0-9a-f]{8})(?![0-9a-z])")
_IPV6_LABEL = re.compile(r"(?<![0-9a-z-])[0-9a-f-]{2,39}(?![0-9a-z-])")


def worst(classes: list[tuple[str, str]]) -> tuple[str, str]:
    """The class and address to fear most; ("", "") of none."""
    return min(classes, key=lambda pair: CLASSES.index(pair[0]), default=("", ""))


def of_host(host: str) -> tuple[str, str]:
    """Class and address of a host as ada_url writes it: ASCII, lower case, IPv6 in brackets.

    The class is "" for a name that says nothing about its address, the address "" for a name without one.
    """
    if not 0 < len(host) <= MAX_HOST_CHARS:
        return "", ""
    ip = _ip_of(host)
    return of_ip(ip) if ip else _of_name(host)


def of_ip(ip: _Ip) -> tuple[str, str]:
    """Class of an address, and the address that it leads to."""
    text = str(ip)
    if text in _METADATA:
        return "metadata", text
    number = int(ip)
    own = next(kind for base, mask, kind in _BY_VERSION[ip.version] if number & mask == base), text
    if ip.version == 4:
        return own
    inner = [of_ip(ipaddress.IPv4Address(address)) for address in _inner(number)]
    if number >> 32 & 0xFDFFFFFF == 0x0000_5EFE:  # ISATAP: in any network
        return worst([own, *inner, of_ip(ipaddress.IPv4Address(number & 0xFFFFFFFF))])
    return worst(inner) if inner else own


def _inner(number: int) -> list[int]:
    """The IPv4 addresses inside an IPv6 address."""
    low = number & 0xFFFFFFFF
    if number >> 32 in _BEFORE_IPV4 or (number >> 32 == 0 and low > 0xFFFF):
        return [low]
    if number >> 112 == 0x2002:  # 6to4
        return [number >> 80 & 0xFFFFFFFF]
    if number >> 96 == 0x2001_0000:  # Teredo: the client with every bit turned, and its server
        return [low ^ 0xFFFFFFFF, number >> 64 & 0xFFFFFFFF]
    return []


def _of_name(host: str) -> tuple[str, str]:
    if name := _NAMES.get(host):
        return name, ""
    readings: list[tuple[str, str]] = [("", "")]
    for numbers in _IN_A_NAME.findall(host):
        if all(int(number) < 256 for number in numbers):
            readings.append(of_ip(ipaddress.IPv4Address(bytes(map(int, numbers)))))
    if service := _RESOLVES_ITSELF.search(host):
        readings += [of_ip(ipaddress.IPv4Address(int(digits, 16))) for digits in _HEXADECIMAL.findall(host)]
        for label in _IPV6_LABEL.findall(host):
            try:
                readings.append(of_ip(ipaddress.IPv6Address(label.replace("-", ":"))))
            except ValueError:
                continue
        if len(readings) == 1 and service.start() > 0:
            readings.append(("reserved", ""))  # in a form that is not read here
    labels = host.split(".")
    readings += [
        (_ENDINGS[ending], "") for at in range(len(labels)) if (ending := ".".join(labels[at:])) in _ENDINGS
    ]
    if len(labels) == 1:
        readings.append(("private", ""))  # no public name has one label
    return worst(readings)


def is_ip(host: str) -> bool:
    """Whether a host, as ada_url writes it, is an address and no name."""
    return _ip_of(host) is not None


def _ip_of(host: str) -> _Ip | None:
    if not host.startswith("[") and not host[-1:].isdigit():
        return None
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
