"""What the providers passed over time, from the counters of their interfaces."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from dataplane.lab.namespaces import LabError
from dataplane.lab.network import Lab

_INTERVAL_S = 0.25
_TX_BYTES = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """Ethernet bytes that each link's provider has passed since the lab was made."""

    at_s: float
    down: dict[str, int]
    up: dict[str, int]


class Meter:
    """Samples every link while its `with` block runs. Times are time.monotonic()'s."""

    def __init__(self, lab: Lab, interval_s: float = _INTERVAL_S) -> None:
        self._lab = lab
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                self.samples.append(sample(self._lab))
                self._ended.wait(self._interval_s)
        except Exception as failure:
            self._failure = failure

    def carried(self, start_s: float, end_s: float) -> tuple[dict[str, int], float]:
        """Bytes downwards a link between the first and last sample inside, and the seconds.

        LabError when fewer than two samples are inside.
        """
        if self._failure is not None:
            raise LabError("the meter failed") from self._failure
        inside = [one for one in self.samples if start_s <= one.at_s <= end_s]
        if len(inside) < 2:
            raise LabError(f"the meter has no two samples within {end_s - start_s:.2f} s")
        first, last = inside[0], inside[-1]
        passed = {name: last.down[name] - first.down[name] for name in last.down}
        return passed, last.at_s - first.at_s

    def rates(self) -> dict[str, list[tuple[float, float]]]:
        """For each link (time in s, bit/s downwards since the sample before)."""
        found: dict[str, list[tuple[float, float]]] = {
            link.name: [] for link in self._lab.topology.links
        }
        for before, after in zip(self.samples, self.samples[1:], strict=False):
            seconds = after.at_s - before.at_s
            for name, points in found.items():
                bits = (after.down[name] - before.down[name]) * 8
                points.append((after.at_s, bits / seconds))
        return found


def sample(lab: Lab) -> Sample:
    """The counters now: down is what left by `link`, up what left by `core`."""
    down, up = {}, {}
    at_s = time.monotonic()
    for link in lab.topology.links:
        with lab[link.name].inside():
            # /proc/net would be the main thread's, which did not enter.
            counters = _counters(Path("/proc/thread-self/net/dev").read_text())
        down[link.name] = counters["link"][_TX_BYTES]
        up[link.name] = counters["core"][_TX_BYTES]
    return Sample(at_s, down, up)


def _counters(text: str) -> dict[str, list[int]]:
    lines = (line.partition(":") for line in text.splitlines()[2:])
    return {name.strip(): [int(word) for word in rest.split()] for name, _, rest in lines}
