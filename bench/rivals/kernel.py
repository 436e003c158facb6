"""Marks without leaving the kernel: nothing at all, HMARK, nft's jhash and numgen, ECMP routes.

All but `forward` and `ecmp` give marks of 1 to 3, of which 1 is the first link's and 2 and 3 the
second's: shares of 1 to 2, as Evenlink's in the same table.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from bench.path import Path3, missing
from bench.rivals import Rival, Serving

MARKS = {"0x1": 1, "0x2": 2, "0x3": 2}
HMARK = (
    "-t mangle -A PREROUTING -i left -j HMARK"
    " --hmark-tuple src,dst --hmark-mod 3 --hmark-offset 1 --hmark-rnd 0x5eed"
)
_JHASH = "jhash ip saddr . ip daddr mod 65536 seed 0x5eed map { 0-21844 : 1, 21845-65535 : 2 }"
_NUMGEN = "numgen inc mod 3 map { 0 : 1, 1 : 2, 2 : 2 }"


def needs_iptables() -> str | None:
    return missing("iptables")


@contextmanager
def routed(path: Path3) -> Iterator[None]:
    """What the rival marks goes by its mark where there is more than one link, and what it leaves
    unmarked goes nowhere."""
    with path.demand_mark(), path.by_mark(MARKS) if path.links > 1 else nullcontext():
        yield


@contextmanager
def forward(_: Path3) -> Iterator[Serving]:
    """Plain forwarding by the main table."""
    yield Serving()


@contextmanager
def hmark(path: Path3) -> Iterator[Serving]:
    with routed(path), path.iptables(HMARK):
        yield Serving()


@contextmanager
def _nft(path: Path3, statement: str) -> Iterator[Serving]:
    path.router.run(
        *("nft", "-f", "-"),
        stdin=f"""table ip marking {{
            chain prerouting {{
                type filter hook prerouting priority mangle;
                iifname "left" meta mark set {statement}
            }}
        }}""",
    )
    try:
        with routed(path):
            yield Serving()
    finally:
        path.router.run("nft", "delete", "table", "ip", "marking")


@contextmanager
def ecmp(path: Path3) -> Iterator[Serving]:
    """One route over all links, by the address pair."""
    path.router.set({"net/ipv4/fib_multipath_hash_policy": 0})
    hops = " ".join(
        f"nexthop via {path.gateway(link)} dev right{link} weight {link}"
        for link in range(1, path.links + 1)
    )
    path.router.run("ip", "route", "replace", "default", *hops.split())
    try:
        yield Serving()
    finally:
        via = ("default", "via", path.gateway(1), "dev", "right1")
        path.router.run("ip", "route", "replace", *via)


RIVALS = (
    Rival("forward", forward),
    Rival("hmark", hmark, needs_iptables),
    Rival("nft-jhash", lambda path: _nft(path, _JHASH)),
    Rival("numgen", lambda path: _nft(path, _NUMGEN)),
    Rival("ecmp", ecmp, links=2),
)
