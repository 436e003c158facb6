"""Providers that give addresses and gateways: a real DHCP server and client, real router
advertisements, and a wire without Ethernet.

Server and advertisements are dnsmasq's, the client is busybox's udhcpc with a script of our own: it
sets address and default route of its interface, and touches nothing else of the machine.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from dataplane.lab import Lab, Namespace
from dataplane.lab.namespaces import environment
from tests.lab.talk import eventually

# What a client has to do: nothing of it is remembered, and each lease replaces the one before.
_SCRIPT = """#!/bin/sh
echo "$1 $ip/$mask $router" >> "$0.log"
case "$1" in
    deconfig)
        ip -4 route flush dev "$interface" table main proto dhcp
        ip -4 address flush dev "$interface" scope global
        ip link set dev "$interface" up ;;
    bound | renew)
        ip address replace "$ip/$mask" dev "$interface"
        ip route replace default via "$router" dev "$interface" metric 210 proto dhcp ;;
esac
exit 0
"""
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_IPV4, _IPV6, _ALL = 0x0800, 0x86DD, 0x0003
# Everybody's MAC address on the far side of a wire without Ethernet.
_FAR_MAC = "02:00:00:00:00:99"


def need(*tools: str) -> None:
    """Skips the test where one of these is missing; /dev/net/tun is one as well."""
    for tool in tools:
        if shutil.which(tool, path=environment()["PATH"]) is None and not Path(tool).exists():
            pytest.skip(f"{tool} is not there")


def _ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(timeout=10)


@contextmanager
def _dnsmasq(lab: Lab, link: str, *arguments: str) -> Iterator[Path]:
    """Gives the file that it logs to."""
    log = lab.directory / f"{link}.dnsmasq.log"
    log.unlink(missing_ok=True)
    process = lab[link].start(
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--port=0",
        "--interface=link",
        "--bind-interfaces",
        "--user=root",
        f"--pid-file={lab.directory}/{link}.dnsmasq.pid",
        f"--dhcp-leasefile={lab.directory}/{link}.leases",
        f"--log-facility={log}",
        "--no-ping",
        *arguments,
    )
    try:
        eventually(lambda: log.exists() and "started" in log.read_text())
        yield log
    finally:
        _ended(process)


@contextmanager
def serving(lab: Lab, link: str, lease: IPv4Interface, gateway: object) -> Iterator[None]:
    """The provider's DHCP server has this one lease to give, with that gateway.

    A client that asks for another is told that it cannot have it.
    """
    with _dnsmasq(
        lab,
        link,
        f"--dhcp-range={lease.ip},{lease.ip},{lease.netmask},2m",
        f"--dhcp-option=option:router,{gateway}",
        "--dhcp-authoritative",
    ):
        yield


class Client:
    """A DHCP client on an interface of the router, from the beginning of its `with` block."""

    def __init__(self, lab: Lab, interface: str) -> None:
        self._lab = lab
        self._interface = interface
        self._script = lab.directory / f"{interface}.udhcpc"
        self._log = Path(f"{self._script}.log")
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Client:
        self._script.write_text(_SCRIPT)
        self._script.chmod(0o755)
        self._log.unlink(missing_ok=True)
        # Asks every second until it is answered, and again after it was refused.
        self._process = self._lab.router.start(
            *("udhcpc", "-f", "-t", "100", "-T", "1", "-A", "1"),
            *("-i", self._interface, "-s", str(self._script)),
        )
        return self

    @property
    def said(self) -> list[str]:
        """What its script was called for, with what lease: "bound 192.0.2.7/24 192.0.2.1"."""
        return self._log.read_text().splitlines() if self._log.exists() else []

    def signal(self, number: int) -> None:
        """USR1 renews, USR2 gives the lease back."""
        assert self._process is not None, "started"
        self._process.send_signal(number)

    def close(self) -> None:
        """Without a word: address and route stay. Again does nothing."""
        if self._process is not None:
            _ended(self._process)
            self._process = None

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def advertising(lab: Lab, link: str, prefix: object, lifetime_s: int) -> Iterator[None]:
    """The provider's router advertisements; lifetime 0 says that it is no default router."""
    with _dnsmasq(
        lab,
        link,
        "--enable-ra",
        f"--dhcp-range={prefix},slaac,64,10m",
        f"--ra-param=link,4,{lifetime_s}",
    ):
        yield


class Tunnel:
    """The wire of a link as a modem's: the router's end is a tun interface of the same name.

    It has no Ethernet, no neighbours and a peer instead of a network. The provider's end is as
    before. A thread carries the packets while the `with` block runs.
    """

    def __init__(self, lab: Lab, link: str) -> None:
        self._lab = lab
        self._link = lab.topology.link(link)
        self._stack = ExitStack()
        self._over, self._end = os.pipe()
        for descriptor in (self._over, self._end):
            self._stack.callback(os.close, descriptor)
        self._thread = threading.Thread(target=self._carry)

    def __enter__(self) -> Tunnel:
        try:
            self._lay_provider(self._lab[self._link.name])
            self._lay_router(self._lab.router)
        except BaseException:
            self.close()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The router's interface is gone with it. Again does nothing."""
        if self._thread.is_alive():
            os.write(self._end, b"x")
            self._thread.join()
        self._stack.close()

    def _lay_provider(self, provider: Namespace) -> None:
        provider.run("ip", "link", "delete", "dev", "link", check=False)
        lines = ["link add name link type veth peer name trunk"]
        for address in self._link.addresses:
            gateway = self._link.gateway(6 if address.version == 6 else 4)
            nodad = " nodad" if address.version == 6 else ""
            lines.append(f"address add {gateway}/{address.network.prefixlen} dev link{nodad}")
            lines.append(f"neighbour replace {address.ip} lladdr {_FAR_MAC} dev link nud permanent")
        _ip(provider, lines[:1])
        provider.set({"net/ipv6/conf/trunk/disable_ipv6": 1})
        # What goes into a tun has to have its checksums.
        provider.run("ethtool", "-K", "link", "tx", "off", "tso", "off", "gso", "off")
        _ip(provider, ["link set dev trunk up", "link set dev link up", *lines[1:]])
        with provider.inside():
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._wire = self._stack.enter_context(wire)
        wire.bind(("trunk", _ALL))
        mac = provider.run("cat", "/sys/class/net/link/address").stdout.strip()
        self._header = bytes.fromhex((mac + _FAR_MAC).replace(":", ""))

    def _lay_router(self, router: Namespace) -> None:
        name = self._link.interface
        router.run("ip", "link", "delete", "dev", name, check=False)
        with router.inside():
            self._tun = os.open("/dev/net/tun", os.O_RDWR)
            self._stack.callback(os.close, self._tun)
            asked = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(self._tun, _TUNSETIFF, asked)
        four, six = self._link.address(4), self._link.address(6)
        _ip(
            router,
            [
                f"link set dev {name} up",
                f"address add {four} peer {self._link.gateway(4)} dev {name}",
                f"address add {six}/64 dev {name} nodad",
            ],
        )

    def _carry(self) -> None:
        wire = self._wire
        while True:
            ready, _, _ = select.select([self._over, self._tun, wire.fileno()], [], [])
            if self._over in ready:
                return
            with suppress(OSError):  # An interface that is down takes nothing.
                if self._tun in ready:
                    packet = os.read(self._tun, 65536)
                    kind = _IPV4 if packet[0] >> 4 == 4 else _IPV6
                    wire.send(self._header + struct.pack("!H", kind) + packet)
                if wire.fileno() in ready:
                    frame, (_, kind, how, *_) = wire.recvfrom(65536)
                    if how != socket.PACKET_OUTGOING and kind in (_IPV4, _IPV6):
                        os.write(self._tun, frame[14:])


def _ip(namespace: Namespace, lines: Sequence[str]) -> None:
    for line in lines:
        namespace.run("ip", *line.split())
