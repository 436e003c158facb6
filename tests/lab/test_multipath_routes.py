"""Multipath routes as the kernel has them: what is put there is what is seen, and what befalls it.

one, two, three: interfaces of a small namespace, each with a living peer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from dataplane.decide.multipath import MOST_WEIGHT, NO_GATEWAY6, Nexthop
from dataplane.decide.plan import UNREACHABLE_METRIC, Route
from dataplane.errors import KernelError
from dataplane.lab import Namespace, namespaces
from dataplane.system.netlink import Netlink

_numbers = itertools.count(1)
TABLE = 7120
HOPS = (
    Nexthop("one", "192.0.1.1", 1),
    Nexthop("three", "198.18.0.1", 7, onlink=True),
    Nexthop("two", "192.0.2.1", MOST_WEIGHT),
)
HOPS6 = (
    Nexthop("one", "fe80::1", MOST_WEIGHT),
    Nexthop("three", NO_GATEWAY6, 2),
    Nexthop("two", "2001:db8:2::1", 1),
)
ROUTE = Route(4, TABLE, 100, "unicast", source="192.0.1.2", nexthops=HOPS)
ROUTE6 = Route(6, TABLE, 100, "unicast", source="2001:db8:1::2", nexthops=HOPS6)
BOTH = pytest.mark.parametrize("route", [ROUTE, ROUTE6], ids=["ipv4", "ipv6"])


@pytest.fixture
def box() -> Iterator[Namespace]:
    made = Namespace(namespaces.name(next(_numbers), "multipath"))
    try:
        for number, name in enumerate(("one", "two", "three"), 1):
            lines = [
                f"link add {name} type veth peer name {name}-peer",
                f"link set {name} up",
                f"link set {name}-peer up",
                f"addr add 192.0.{number}.2/24 dev {name}",
                f"addr add 2001:db8:{number}::2/64 dev {name} nodad",
            ]
            for line in lines:
                made.run("ip", *line.split())
        yield made
    finally:
        made.remove()


@pytest.fixture
def asking(box: Namespace) -> Iterator[Netlink]:
    """Asks the namespace, in which the test's thread is meanwhile."""
    with box.inside():
        made = Netlink()
        yield made
        made.close()


def listed(box: Namespace, family: int) -> str:
    return box.run("ip", f"-{family}", "route", "show", "table", str(TABLE), check=False).stdout


@BOTH
def test_what_is_put_is_seen(asking: Netlink, route: Route) -> None:
    end = Route(route.family, TABLE, UNREACHABLE_METRIC, "unreachable")
    alone = Route(route.family, TABLE, 101, "unicast", "one", route.nexthops[0].gateway)
    for one in (route, end, alone):
        asking.add_route(one)
    assert asking.routes() == {route, end, alone}
    asking.add_route(route)
    assert asking.routes() == {route, end, alone}, "again changes nothing"


@BOTH
def test_one_takes_the_place_of_another(asking: Netlink, route: Route) -> None:
    """Of as many ways, of fewer, and of one alone, there and back again."""
    others = replace(route.nexthops[0], weight=3), route.nexthops[2]
    fewer = replace(route, nexthops=others)
    hop = route.nexthops[2]
    single = replace(route, interface=hop.interface, gateway=hop.gateway, nexthops=())
    bare = replace(single, gateway="")
    asking.add_route(route)
    for one in (fewer, route, single, route, bare, fewer):
        asking.add_route(one)
        assert asking.routes() == {one}


@BOTH
def test_it_is_deleted_whole(asking: Netlink, box: Namespace, route: Route) -> None:
    asking.add_route(route)
    asking.delete_route(route)
    assert asking.routes() == set()
    asking.delete_route(route)
    asking.add_route(replace(route, nexthops=route.nexthops[:2]))
    asking.delete_route(route)
    assert listed(box, route.family) == "", "whatever became of its ways"


@BOTH
def test_a_way_that_is_gone_is_said(asking: Netlink, route: Route) -> None:
    lost = replace(route, nexthops=(*route.nexthops[:2], Nexthop("void", "192.0.9.1")))
    with pytest.raises(KernelError, match="interface void does not exist"):
        asking.add_route(lost)
    assert asking.routes() == set()


@BOTH
def test_when_an_interface_is_deleted_the_others_lead_out(
    asking: Netlink, box: Namespace, route: Route
) -> None:
    """The kernel takes away the whole IPv4 route: hence the single ones behind it."""
    asking.add_route(route)
    for rank, hop in enumerate(route.nexthops, 101):
        asking.add_route(
            Route(
                route.family, TABLE, rank, "unicast", hop.interface, hop.gateway, onlink=hop.onlink
            )
        )
    asking.add_route(Route(route.family, TABLE, UNREACHABLE_METRIC, "unreachable"))
    box.run("ip", "link", "delete", "two")
    assert any(way.metric == 100 for way in asking.routes()) == (route.family == 6)
    target = "203.0.113.9" if route.family == 4 else "2001:db8:99::9"
    box.run("ip", f"-{route.family}", "rule", "add", "fwmark", "7", "lookup", str(TABLE))
    way = box.run("ip", f"-{route.family}", "route", "get", target, "mark", "7").stdout
    assert "dev one" in way or "dev three" in way


def test_a_route_that_went_with_its_interface_is_well_deleted(
    asking: Netlink, box: Namespace
) -> None:
    alone = Route(4, TABLE, 100, "unicast", "one", "192.0.1.1")
    asking.add_route(alone)
    box.run("ip", "link", "delete", "one")
    asking.delete_route(alone)
    with pytest.raises(KernelError, match="interface one does not exist"):
        asking.add_route(alone)


def test_ipv6_takes_no_way_without_a_gateway(asking: Netlink) -> None:
    """Why there is a gateway that nobody has."""
    bare = replace(ROUTE6, nexthops=(HOPS6[0], replace(HOPS6[1], gateway="")))
    with pytest.raises(KernelError):
        asking.add_route(bare)
