"""The smallest whole file, and what is wrong with others."""

from dataplane.config import load
from dataplane.errors import ConfigError, Fault

MINIMAL = """\
lan = ["br-lan"]

[link.fibre]
interface = "eth1"
gateway = "192.0.2.1"          # or "auto"; none for point-to-point
capacity = "200Mbit"           # or download = , upload =

[link.lte]
interface = "wwan0"
gateway = "auto"
capacity = "50Mbit"
metered = true
"""


def faults_of(text: str) -> tuple[Fault, ...]:
    try:
        load.read(text, "evenlink.toml")
    except ConfigError as error:
        return error.faults
    return ()


def said(text: str) -> list[tuple[int, str, str]]:
    return [(fault.line, fault.key, fault.message) for fault in faults_of(text)]
