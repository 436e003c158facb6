"""One tree of exceptions. Every message says where, what, and what is legal.

`Error` is never raised itself. The concrete classes say whose fault it was, and carry the exit
status that the command line ends with.
"""

from __future__ import annotations

from dataclasses import dataclass


class Error(Exception):
    """The root of everything that Evenlink raises on purpose."""

    exit_status = 3


class UsageError(Error):
    """The command was called in a way that it does not understand."""

    exit_status = 2


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong in a file the operator wrote.

    `line` counts from 1; 0 means the fault belongs to the file as a whole. `key` is the dotted
    path of the key, empty when there is none.
    """

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class ConfigError(Error):
    """The operator's file has faults; all of them are listed, in the order of the file."""

    exit_status = 2

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


class MachineError(Error):
    """The machine is not what the file expects: an interface, a gateway, a kernel feature."""


class KernelError(Error):
    """The kernel refused a step; what had been done before it was undone."""


class DaemonError(Error):
    """The daemon could not be reached, or refused a request."""
