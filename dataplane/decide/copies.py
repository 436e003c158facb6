"""The chains of our nft table that copy packets to userspace, so that something is learned.

A copy is sent by `log group`: the packet itself goes on at once. Copied are, of connections from
the LAN that leave by a link, the first packets that carry data, and of DNS the questions and the
answers. All of it comes behind the operator's own filters, so that what they drop teaches nothing.
"""

from __future__ import annotations

from dataplane.config.model import Queue
from dataplane.decide.facts import Family
from dataplane.decide.plan import Plan
from dataplane.decide.spelling import NFPROTO, base, interfaces, link_interfaces

# What the copies are called in their messages.
FROM_LAN, FROM_LINK = "lan original", "wan reply"
QUESTION, ANSWER = "question", "answer"

NOT_COPIED_COUNTER = "not_copied"

# Of each direction of a connection. Who speaks first says in one or two packets what he speaks.
_FIRST_PACKETS = 8
# Enough for what a connection begins with, even where the kernel joined several packets.
_PACKET_BYTES = 4096
_MESSAGE_BYTES = 4096
# Of each side. Without a limit, 167,000 new connections a second became 102,000, on two cores. So
# many copies teach all that there is to learn; those that are left out are counted.
_A_SECOND, _BURST = 10_000, 5_000
# Of questions and of answers. Their reader takes some 3,200 a second; a flood to port 53 would
# leave it deaf for all others. The hosts of a large network ask less.
_MESSAGES_A_SECOND, _MESSAGES_BURST = 2_000, 1_000
_PRIORITY = "filter + 10"
# An IP header and a TCP header with the time stamps that most packets have.
_WITHOUT_DATA: dict[Family, int] = {4: 52, 6: 72}


def packets_group(queue: Queue) -> int:
    """The log group of the connections' first packets: the queue's number, which is free there."""
    return min(queue.number, 0xFFFE)


def answers_group(queue: Queue) -> int:
    """The log group of questions and answers of DNS."""
    return packets_group(queue) + 1


def copy_chains(plan: Plan) -> list[tuple[str, list[str]]]:
    """None where nothing is to be learned."""
    if not plan.copies_packets and not plan.copies_answers:
        return []
    links, lan = link_interfaces(plan), interfaces(plan.lan)
    chains = []
    if plan.copies_answers:
        chains += [
            ("copy_question", _message(plan, QUESTION)),
            ("copy_answer", _message(plan, ANSWER)),
        ]
    if plan.copies_packets:
        chains += [("copy_lan", _data(plan, FROM_LAN)), ("copy_wan", _data(plan, FROM_LINK))]
    chains += [
        ("copy_out", _one_way(plan, "original", "udp dport 53 jump copy_question", "lan")),
        ("copy_back", _one_way(plan, "reply", "udp sport 53 jump copy_answer", "wan")),
        (
            "copy_forward",
            [
                *_hook(plan, "forward"),
                f"iifname {lan} oifname {links} ct direction original goto copy_out",
                f"iifname {links} oifname {lan} ct direction reply goto copy_back",
            ],
        ),
    ]
    if plan.copies_answers:
        asked = f"oifname {links} udp dport 53 ct direction original jump copy_question"
        answered = f"iifname {links} udp sport 53 ct direction reply jump copy_answer"
        chains += [
            ("copy_output", [*_hook(plan, "output"), asked]),
            ("copy_input", [*_hook(plan, "input"), answered]),
        ]
    return chains


def _hook(plan: Plan, hook: str) -> list[str]:
    rules = [base("filter", hook, _PRIORITY)]
    if 6 not in plan.families:
        rules.append("meta nfproto ipv6 accept")
    return rules


def _one_way(plan: Plan, direction: str, message: str, data: str) -> list[str]:
    """Of a connection that began in the LAN."""
    rules = [message] if plan.copies_answers else []
    if plan.copies_packets:
        # Of connections that are older than the counting, none is ever counted.
        rules.append(f"ct {direction} packets 1-{_FIRST_PACKETS} goto copy_{data}")
    return rules


def _data(plan: Plan, prefix: str) -> list[str]:
    """What carries something; of short segments without time stamps, a few bytes are missed."""
    return [
        "meta l4proto != { tcp, udp } accept",
        *(
            f"{NFPROTO[family]} meta l4proto tcp meta length <= {_WITHOUT_DATA[family]} accept"
            for family in plan.families
        ),
        f"{_beyond(_A_SECOND, _BURST)} accept",
        _log(packets_group(plan.queue), prefix, _PACKET_BYTES),
    ]


def _message(plan: Plan, prefix: str) -> list[str]:
    """Of the LAN and of the router together; what is too much may still teach an application."""
    return [
        f"{_beyond(_MESSAGES_A_SECOND, _MESSAGES_BURST)} return",
        _log(answers_group(plan.queue), prefix, _MESSAGE_BYTES),
    ]


def _beyond(a_second: int, burst: int) -> str:
    """What is too much, counted."""
    limit = f"limit rate over {a_second}/second burst {burst} packets"
    return f"{limit} counter name {NOT_COPIED_COUNTER}"


def _log(group: int, prefix: str, most_bytes: int) -> str:
    """The group's reader says how many copies the kernel gathers before it hands them over."""
    return f'log prefix "{prefix}" group {group} snaplen {most_bytes}'
