"""The names of all keys, table by table: those of this version, and those of later ones."""

from __future__ import annotations

TOP = (
    "lan",
    "key",
    "mark_mask",
    "exempt_marks",
    "ipv6",
    "own_traffic",
    "on_stop",
    "state_dir",
    "control_socket",
    "control_group",
    "on_change",
    "queue",
    "link",
    "probe",
    "balance",
    "group",
    "list",
    "rule",
    "log",
)
QUEUE = ("number", "workers", "engine", "mode", "length", "copy_bytes", "spin_us")
LINK = (
    "interface",
    "gateway",
    "gateway6",
    "capacity",
    "download",
    "upload",
    "share",
    "metered",
    "nat",
    "address",
    "mss",
    "resolvers",
    "probes",
    "failback",
    "probe",
)
# Of [[link.NAME.probe]]; [probe] has all of these and one more.
PROBE = (
    "kind",
    "targets",
    "need",
    "interval_ms",
    "timeout_ms",
    "down",
    "up",
    "loss_down",
    "loss_up",
    "latency_down_ms",
    "latency_up_ms",
)
DEFAULT_PROBE = (*PROBE, "hold_ms")
GROUP = (
    "links",
    "method",
    "fields",
    "symmetric",
    "sticky",
    "sticky_time",
    "full",
    "margin_ms",
    "failback",
)
BALANCE = GROUP
LIST = ("entries", "files", "names", "watch")
RULE = (
    "in",
    "source",
    "destination",
    "protocol",
    "source_port",
    "destination_port",
    "dscp",
    "application",
    "use",
    "fields",
    "else",
)
APPLICATION = ("name", "host")
LOG = ("level",)

TOP_LATER = ("announce", "ospf", "metrics", "page")
LINK_LATER = ("bgp",)
LOG_LATER = ("format",)

# Where a key belongs that stands in the wrong table; TOML gives all that follows a header to it.
HOME = {
    **dict.fromkeys(DEFAULT_PROBE, "in [probe]"),
    **dict.fromkeys(PROBE, "in [probe] or [[link.NAME.probe]]"),
    **dict.fromkeys(LINK, "in [link.NAME]"),
    **dict.fromkeys(LOG, "in [log]"),
    **dict.fromkeys(RULE, "in [[rule]]"),
    **dict.fromkeys(LIST, "in [list.NAME]"),
    **dict.fromkeys(GROUP, "in [balance] or [group.NAME]"),
    **dict.fromkeys(QUEUE, "in [queue]"),
    **dict.fromkeys(TOP, "at the top of the file, before the first table"),
}
