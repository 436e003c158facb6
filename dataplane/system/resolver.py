"""Names of targets -> addresses, by the name servers of /etc/resolv.conf, without /etc/hosts."""

from __future__ import annotations

import asyncio
import importlib
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address

from dataplane.decide.facts import Family
from dataplane.errors import MachineError

# Loaded when the first name is asked for; most files have none.
_LIBRARY = "dns.asyncresolver"
_KEPT_S = (5.0, 3600.0)
_ADDRESSES = 16


async def addresses(
    name: str, family: Family, limit_s: float
) -> tuple[list[IPv4Address | IPv6Address], float]:
    """The name's addresses of that family, at least one, and the seconds they may be kept.

    MachineError says why there is none.
    """
    if _LIBRARY not in sys.modules:
        await asyncio.to_thread(importlib.import_module, _LIBRARY)
    import dns.asyncresolver
    import dns.exception
    import dns.resolver

    try:
        async with asyncio.timeout(limit_s):
            resolver = dns.asyncresolver.Resolver()
            answer = await resolver.resolve(
                name, "A" if family == 4 else "AAAA", lifetime=limit_s, search=False
            )
        found = [ip_address(record.address) for record in answer]
    except dns.resolver.NXDOMAIN as fault:
        raise MachineError("does not resolve: NXDOMAIN") from fault
    except dns.resolver.NoAnswer as fault:
        raise MachineError(f"does not resolve: it has no IPv{family} address") from fault
    except dns.resolver.NoNameservers as fault:
        raise MachineError("does not resolve: no name server has an answer") from fault
    except dns.resolver.NoResolverConfiguration as fault:
        raise MachineError("does not resolve: /etc/resolv.conf names no server") from fault
    except (dns.exception.Timeout, TimeoutError) as fault:
        raise MachineError(f"does not resolve: no answer within {limit_s:g} s") from fault
    except Exception as fault:  # Who knows what hostile bytes make of the library.
        raise MachineError(f"does not resolve: {fault or type(fault).__name__}") from fault
    shortest, longest = _KEPT_S
    kept_s = min(max(float(answer.chaining_result.minimum_ttl), shortest), longest)
    return found[:_ADDRESSES], kept_s
