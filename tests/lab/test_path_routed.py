"""Public addresses that a provider routes to the router: they answer by the link that was asked.

                       ┌─ isp-a ─┐
client ─── router ─────┤         ├─ server
198.18.99.5            └─ isp-b ─┘  routes 198.18.99.5 to the router
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from dataplane.lab import Lab, uplinks
from tests.lab.talk import Talk, counted, tracked

ROUTED = IPv4Address("198.18.99.5")
PRIVATE = IPv4Address("10.99.0.5")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Both addresses live on the client, and isp-b sends them to the router."""
    with Lab(uplinks(10_000_000, 20_000_000, shaped=False)) as built:
        client = str(built.topology.lans[0].clients(4)[0])
        way = built.topology.link("isp-b")
        core = built["isp-b"].run("ip", "-4", "-o", "address", "show", "dev", "core").stdout
        provider = core.split()[3].split("/")[0]
        for address in (ROUTED, PRIVATE):
            built.client.run("ip", "address", "add", f"{address}/32", "dev", "eth0")
            built.router.run("ip", "route", "add", str(address), "via", client)
            built["isp-b"].run("ip", "route", "add", str(address), "via", str(way.address(4)))
            built.server.run("ip", "route", "add", str(address), "via", provider)
        built.run(built.file(key="0123456789abcdef"))
        yield built


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_routed_public_address_answers_by_its_link(lab: Lab, protocol: str) -> None:
    stopped = counted(lab, "wrong_source")
    for asker in lab.topology.serving(4):
        with Talk(lab.server, asker, lab.client, ROUTED, protocol=protocol) as talk:
            assert talk.goes_on() == asker
            assert tracked(lab, "mark=33554432", f"sport={talk.ports[0]}")
    assert counted(lab, "wrong_source") == stopped


def test_a_private_address_never_answers_so(lab: Lab) -> None:
    """A neighbour who routes to our LAN gets no packet with its addresses."""
    stopped = counted(lab, "wrong_source")
    asker = lab.topology.serving(4)[0]
    with Talk(lab.server, asker, lab.client, PRIVATE, protocol="udp") as talk:
        talk.near.settimeout(0.5)
        with pytest.raises(TimeoutError):
            talk.goes_on()
    assert counted(lab, "wrong_source") > stopped
