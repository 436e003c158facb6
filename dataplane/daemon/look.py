"""Looking at the machine: what the plan depends on, gathered from system/."""

from __future__ import annotations

import time
from dataclasses import replace

from dataplane.config.model import AUTO, Config
from dataplane.decide.facts import Facts
from dataplane.decide.liveness import link_states
from dataplane.decide.slots import SlotTable
from dataplane.decide.wish import Before
from dataplane.system import nft
from dataplane.system.netlink import Netlink
from dataplane.system.state import State

# Neighbour discovery on a shared interface answers in milliseconds or not at all.
_NEIGHBOUR_WAIT_S = 0.5


class Machine:
    """The machine under the daemon's feet."""

    def __init__(self) -> None:
        self.netlink = Netlink()
        self._native_queue: bool | None = None

    def close(self) -> None:
        self.netlink.close()

    def look(self, config: Config) -> Facts:
        """What is there now of what the file names."""
        if self._native_queue is None:
            self._native_queue = nft.knows_queue()
        names = frozenset((*config.lan, *(link.interface for link in config.links)))
        learn = frozenset(
            link.interface for link in config.links if AUTO in (link.gateway, link.gateway6)
        )
        facts = self.netlink.facts(names, learn, self._native_queue)
        return replace(
            facts,
            foreign_marks=tuple(self.netlink.foreign_marks()),
            gateway_macs=self._gateway_macs(config, facts),
        )

    def _gateway_macs(self, config: Config, facts: Facts) -> tuple[tuple[str, str], ...]:
        """Asked for only where links share an interface: inbound is told apart by them."""
        interfaces = [link.interface for link in config.links]
        wanted = {
            (str(way.gateway), interface.index)
            for link in config.links
            if interfaces.count(link.interface) > 1
            for way in link_states(config, facts)[link.name].ways
            if way.alive and way.gateway and (interface := facts.interface(link.interface))
        }
        found: dict[str, str] = {}
        deadline = time.monotonic() + _NEIGHBOUR_WAIT_S
        while wanted and time.monotonic() < deadline:
            for gateway, index in sorted(wanted):
                mac = self.netlink.gateway_mac(gateway, index)
                if mac:
                    found[gateway] = mac
                else:
                    self.netlink.ask_neighbour(gateway, index)
            wanted = {(gateway, index) for gateway, index in wanted if gateway not in found}
            if wanted:
                time.sleep(0.02)
        return tuple(sorted(found.items()))


def before_of(state: State) -> Before:
    """What an earlier start left of numbers and home tables."""
    homes = {name: SlotTable(*table) for name, table in state.homes.items()}
    return Before(state.ids, homes)
