"""The addresses behind the names of one link's targets, kept fresh."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from dataplane.decide.facts import Family
from dataplane.decide.liveness import Address
from dataplane.errors import Error
from dataplane.system.resolver import addresses

_LIMIT_S = 5.0
# While a name leads nowhere, it is asked for so often.
_AGAIN_S = 10.0


@dataclass(slots=True)
class Found:
    """`asked`: there was an answer, or a refusal. `trouble` says why there is no address."""

    address: Address | None = None
    trouble: str = "not resolved yet"
    asked: bool = False


class Naming:
    """Resolves names again before what is known of them is over, until `close`.

    An address stays in use while its name cannot be resolved anew: a resolver that is silent says
    nothing of the target.
    """

    def __init__(self, names: Collection[str], families: Collection[Family]) -> None:
        self._found = {(name, family): Found() for name in names for family in families}
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._follow(*each)) for each in self._found]

    def found(self, name: str, family: Family) -> Found:
        """What is known now."""
        return self._found[name, family]

    def faults(self) -> list[str]:
        """The names that have no address of either family, and why."""
        names = dict.fromkeys(name for name, _ in self._found)
        faults = []
        for name in names:
            each = [found for (of, _), found in self._found.items() if of == name]
            if all(found.asked and found.address is None for found in each):
                faults.append(f"target {name} {each[0].trouble}")
        return faults

    async def _follow(self, name: str, family: Family) -> None:
        found = self._found[name, family]
        while True:
            try:
                known, keep_s = await addresses(name, family, _LIMIT_S)
                # While it is still among them, the same one is asked.
                if found.address not in known:
                    found.address = known[0]
                found.trouble = ""
            except Error as refusal:
                found.trouble, keep_s = str(refusal), _AGAIN_S
            found.asked = True
            await asyncio.sleep(keep_s)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
