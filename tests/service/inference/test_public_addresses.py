"""Addresses of every kind that must not be reached, and some that may."""

import pytest

from prompt_serve.service.inference.public_addresses import is_public

NOT_PUBLIC = {
    "this network": ["0.0.0.0", "0.1.2.3"],
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd12::1"],
    "link-local": ["169.254.1.1", "fe80::1", "fe80::1%eth0"],
    "metadata": [
        "169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254",
    ],
    "shared by a carrier": ["100.64.0.1", "100.127.255.255"],
    "multicast": ["224.0.0.1", "224.0.1.1", "239.255.255.255", "ff02::1", "ff0e::1"],
    "broadcast and reserved": ["255.255.255.255", "240.0.0.1", "100::1", "4000::1"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "benchmarks": ["198.18.0.1", "198.19.255.255", "2001:2::1"],
    "IPv4-mapped": ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "::ffff:0:8.8.8.8"],
    "IPv4-compatible": ["::127.0.0.1", "::8.8.8.8", "::"],
    "NAT64": ["64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1"],
    "6to4 and Teredo": ["2002:7f00:1::", "2002:808:808::1", "2001:0:1::1", "192.88.99.1"],
    "site-local": ["fec0::1"],
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_PUBLIC)
def test_what_is_not_public_is_refused(kind: str) -> None:
    assert [address for address in NOT_PUBLIC[kind] if is_public(address)] == []


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.32.0.1", "192.167.255.255",
     "169.253.0.1", "126.255.255.255", "223.255.255.255", "2606:4700::1111", "2a00:1450::1"],
)  # fmt: skip
def test_neighbors_of_what_is_refused_are_public(address: str) -> None:
    assert is_public(address)
