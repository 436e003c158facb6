"""The lab: a router under test between a LAN and shaped providers, in namespaces of its own.

    from dataplane.lab import Lab, uplinks

    with Lab(uplinks(10_000_000, 20_000_000)) as lab:       # isp-a, isp-b; IPv4 and IPv6
        daemon = lab.run()                                  # evenlink run, ready to serve
        source = lab.topology.lans[0].clients(4)[0]
        target = lab.topology.serving(4)[0]
        lab.client.run("ping", "-c1", "-I", str(source), str(target))
        daemon.status(), daemon.explain([f"{source} {target} tcp 1234 80"])
        daemon.stop()                                       # or kill(), reload(), stop(SIGINT)

Namespaces: `lab.router`, `lab.client`, `lab.server`, `lab["isp-a"]` (a provider), `lab["dmz"]`
(another LAN). Each has `run(*command)` to the end, `start(*command)` (a Popen that dies with the
lab), `inside()` (this thread enters, for sockets), and `set({"net/ipv4/ip_forward": 1})`.

The router is left as a fresh machine: its interfaces have their addresses, forwarding is off, and
there is no default route. `lab.plain("isp-a")` makes it a plain NAT router over one link instead.

`lab.file(links=["isp-a"], mark_mask=0xff00)` writes the topology as an evenlink file with those
top-level keys, `lab.file(text=...)` any other; `lab.run(file)` serves it. `lab.directory` is a
temporary directory; `lab.evenlink("plan", str(file))` runs any command on the router.

Other layouts are data, see `topology`: `uplinks` for the plain case, else `Topology(links, lans,
servers)` from `link()`, `lan()` and `servers()`. What the kernel lacks raises `UnavailableError`,
which names it; the fixture in tests/lab makes that a skip.

`witness.Witness(lab)` is the provider's side: sources that are not the link's, and which link a
connection really used. `traffic` has clients and servers; `meter.Meter(lab)` the rates of links.
`faults` breaks links while a block runs; `failover` measures what comes of it, by `calling`. The
server's namespace answers pings at the public resolvers, too, which the daemon asks by default.

Everything is removed when the block ends, however it ends. After kill -9 of the maker, the next lab
removes what was left.
"""

from __future__ import annotations

from dataplane.lab.daemon import Daemon
from dataplane.lab.namespaces import LabError, Namespace, UnavailableError, sweep
from dataplane.lab.network import Lab
from dataplane.lab.topology import Lan, Link, Topology, lan, link, servers, uplinks

__all__ = [
    "Daemon",
    "Lab",
    "LabError",
    "Lan",
    "Link",
    "Namespace",
    "Topology",
    "UnavailableError",
    "lan",
    "link",
    "servers",
    "sweep",
    "uplinks",
]
