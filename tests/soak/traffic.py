"""A drip of new connections, so that there is something to forget when a link dies."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from dataplane.lab import Lab, packetfilter

_PAUSE_S = 0.01
_FIRST_NUMBER = 1_000_000
_DISCARD = 9


class Dripping:
    """Datagrams from the clients while its block runs, a hundred new connections a second."""

    def __init__(self, lab: Lab) -> None:
        self.sent = 0
        self._lab = lab
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._drip, name="drip")

    def _drip(self) -> None:
        pairs = itertools.cycle(self._lab.topology.pairs())
        with self._lab.client.inside():
            for number, (source, target) in enumerate(pairs, _FIRST_NUMBER):
                if self._over.wait(_PAUSE_S):
                    return
                family = socket.AF_INET if source.version == 4 else socket.AF_INET6
                with socket.socket(family, socket.SOCK_DGRAM) as one, suppress(OSError):
                    one.bind((str(source), 0))
                    one.sendto(
                        struct.pack("!II", packetfilter.MAGIC, number), (str(target), _DISCARD)
                    )
                self.sent += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
