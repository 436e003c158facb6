"""One packet -> the decision, step by step, in the order that the packet path takes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dataplane.config.marks import Marks
from dataplane.config.model import Config, Group, Link, Method, Nat, Rule, Sticky
from dataplane.decide import beforehand
from dataplane.decide.aloud import Entrance, Labels, conditions, listed, place
from dataplane.decide.balance import GroupNow
from dataplane.decide.compiled import program_of
from dataplane.decide.facts import Destination, Family
from dataplane.decide.flow import Flow
from dataplane.decide.learned import Known
from dataplane.decide.liveness import Condition, source_towards
from dataplane.decide.plan import table_of
from dataplane.decide.policy import MAIN, NEXT, REJECT, RuleNow, policy
from dataplane.decide.program import Draw
from dataplane.decide.wish import Wish
from dataplane.hotpath import CONDITIONS, Classifier, Decision

_WHY_PREFERRED = {
    Method.FAILOVER: "the first living one of",
    Method.OVERFLOW: "the first that is not full of",
    Method.LEAST_USED: "the one with most free capacity of",
    Method.LOWEST_LATENCY: "the one that answers soonest of",
}


@dataclass(slots=True)
class Explanation:
    """The answer; the keys of `explain --json`.

    `link` is None where main or reject decides, and where nobody can foretell the link: then
    `candidates` are the links that it may be, with what part of the connections each gets.
    """

    link: str | None = None
    group: str | None = None
    method: str | None = None
    rule: str | None = None
    fields: str | None = None
    hash: str | None = None
    slot: int | None = None
    mark: str | None = None
    table: int | str | None = None
    source_address: str | None = None
    candidates: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""
    steps: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Situation:
    """What a decision depends on, as it is now or as it is supposed to be.

    `rules` are those of the classifier's program, in its order.
    """

    wish: Wish
    rules: tuple[RuleNow, ...]
    classifier: Classifier
    known: Labels

    @classmethod
    def of(cls, wish: Wish, known: Known | None = None) -> Situation:
        """What the wish would do, with what is known of names and applications."""
        classifier = Classifier(program_of(wish, known))
        return cls(wish, policy(wish), classifier, Labels(known))

    @property
    def config(self) -> Config:
        return self.wish.config

    @property
    def marks(self) -> Marks:
        return Marks(self.config.mark_mask)


def explain(situation: Situation, flow: Flow, destination: Destination) -> Explanation:
    """The decision for a new connection whose first packet is `flow`.

    `destination` is what main's connected and specific routes say of its destination.
    """
    config, states = situation.config, situation.wish.states
    answer = Explanation()
    exempt = beforehand.exempt(config, flow, destination)
    if exempt:
        return _left_to_main(answer, situation, exempt)
    answer.steps.append(
        f"{flow.destination}: no connected network and no specific route of main leads there, "
        "so the connection is balanced"
    )
    pinned = beforehand.pinned(config, flow)
    if pinned:
        answer.reason = f"the source lies in the delegated prefix {pinned.prefix6}"
        answer.steps.append(f"{answer.reason} of link {pinned.name}: pinned to it, no translation")
        return _by_link(answer, situation, pinned, flow)
    own = beforehand.own(config, states, flow)
    asked = beforehand.asked(config, flow)
    pins = asked is not None and states[asked.name].way(flow.family).alive
    if own and not (asked and pins and beforehand.main_decides(config, asked)):
        answer.reason = f"{flow.source} is this router's own address on link {own.name}"
        answer.steps.append(f"{answer.reason}: what has that source leaves by it")
        return _by_link(answer, situation, own, flow)
    if asked and pins:
        answer.reason = f"{flow.destination} is a resolver of link {asked.name}"
        answer.steps.append(f"{answer.reason}: pinned to it")
        return _by_link(answer, situation, asked, flow)
    if asked:
        why = states[asked.name].way(flow.family).why
        answer.steps.append(
            f"{flow.destination} is a resolver of link {asked.name}, which takes no IPv"
            f"{flow.family} now ({why}): balanced like any other"
        )
    return _by_rules(answer, situation, flow)


def _by_rules(answer: Explanation, situation: Situation, flow: Flow) -> Explanation:
    """Which rule it is, is the classifier's word, as it is the queue workers'."""
    entrance = _entrance(situation, flow)
    index = situation.wish.interface_index(entrance.interface) if entrance.interface else None
    asked = (
        flow.source.packed,
        flow.destination.packed,
        flow.protocol,
        flow.source_port,
        flow.destination_port,
    )
    classifier = situation.classifier
    decided = classifier.classify_flow(*asked, dscp=flow.dscp, interface=index or 0, peek=True)
    if len(situation.rules) > 1:
        found = classifier.matching(*asked, dscp=flow.dscp, interface=index or 0)
        for now, bits in zip(situation.rules[: decided.rule + 1], found, strict=False):
            # A rule that leads the families to different places is there once for each.
            if now.rule and flow.family in now.outcomes:
                failing = [name for bit, name in enumerate(CONDITIONS) if bits >> bit & 1]
                words = conditions(now.rule, failing, flow, entrance, situation.known)
                answer.steps.append(_rule_step(situation, now, now.rule, failing, words, flow))
    now = situation.rules[decided.rule]
    answer.rule = now.name
    outcome = now.outcomes[flow.family]
    target, own = outcome.target, outcome.target in (MAIN, REJECT)
    if now.rule and outcome.instead:
        dead = _dead(situation, now.rule.use, flow.family)
        answer.steps.append(f"{dead}: else, {_target(situation, target)}")
    elif now.rule and not own and not _lives(situation, target, flow.family):
        dead = _dead(situation, target, flow.family)
        answer.steps.append(f"{dead}, and nothing else lives either: used all the same")
    said = f"{now.name} says {'else ' if outcome.instead else ''}{_target(situation, target)}"
    if target == MAIN:
        return _left_to_main(answer, situation, said)
    if target == REJECT:
        return _rejected(answer, situation, said)
    if target in situation.wish.groups:
        return _by_group(answer, situation, now, situation.wish.groups[target], decided, flow)
    answer.reason = said
    return _by_link(answer, situation, situation.config.link(target), flow)


def _entrance(situation: Situation, flow: Flow) -> Entrance:
    """By which interface of the LAN side it comes in."""
    lan = situation.config.lan
    if flow.interface:
        return _existing(situation, flow.interface)
    facts, states = situation.wish.facts, situation.wish.states.values()
    addresses = {one.ip for interface in facts.interfaces for one in interface.addresses}
    addresses |= {one for state in states for one in state.way(flow.family).addresses}
    if flow.source in addresses:
        return Entrance("", "the router's own packets come in by no interface")
    if len(lan) == 1:
        return _existing(situation, lan[0])
    return Entrance("", f"which of {listed(lan)} it comes in by is not said")


def _existing(situation: Situation, interface: str) -> Entrance:
    if situation.wish.interface_index(interface) is None:
        return Entrance("", f"interface {interface} does not exist")
    return Entrance(interface)


def _rule_step(
    situation: Situation, now: RuleNow, rule: Rule, failing: list[str], said: list[str], flow: Flow
) -> str:
    words = list(said)
    if "family" in failing and now.outcomes[flow.family].target == NEXT:
        words.insert(0, f"{_dead(situation, rule.use, flow.family)}, and else is next")
    verdict = "does not match" if failing else "matches"
    return f"{place(rule)} {verdict}: {'; '.join(words) or 'it asks for nothing'}"


def _target(situation: Situation, name: str) -> str:
    if name in (MAIN, REJECT):
        return name
    return f"group {name}" if name in situation.wish.groups else f"link {name}"


def _lives(situation: Situation, name: str, family: Family) -> bool:
    group = situation.wish.groups.get(name)
    if group:
        return family in group.living
    return situation.wish.states[name].way(family).alive


def _dead(situation: Situation, name: str, family: Family) -> str:
    """That no link of the target takes the family, and why."""
    states = situation.wish.states
    group = situation.wish.groups.get(name)
    if not group:
        return f"link {name} takes no IPv{family} now ({states[name].way(family).why})"
    why = (f"{link}: {states[link].way(family).why}" for link in group.group.links)
    return f"no link of group {name} takes IPv{family} now ({'; '.join(why)})"


def _by_group(
    answer: Explanation,
    situation: Situation,
    now: RuleNow,
    group: GroupNow,
    decided: Decision,
    flow: Flow,
) -> Explanation:
    name, method = group.group.name, group.group.method
    serving = [one for one in group.group.links if one in group.serving.get(flow.family, ())]
    if not serving:
        of = "" if name == situation.config.balance.name else f" of group {name}"
        return _left_to_main(answer, situation, f"no link{of} is set up for IPv{flow.family}")
    answer.group, answer.method = name, method.value
    matches = "" if now.rule else f"rule {now.name}: matches everything; "
    answer.steps.append(f"{matches}group {name}, method {answer.method}")
    names = {number: one for one, number in situation.wish.ids.items()}
    shares: dict[str, float] = {}
    match method:
        case Method.PCC:
            link = names[decided.decision]
            _tell_slot(answer, now.rule, group.group, decided, link)
        case Method.NTH | Method.RANDOM:
            action = now.compiled.actions[flow.family]
            assert isinstance(action, Draw), "that is what these methods are compiled to"
            total = sum(action.weights.values())
            shares = {names[one]: weight / total for one, weight in action.weights.items()}
            turn = "the next in turn" if method is Method.NTH else "a weighted draw"
            answer.steps.append(f"{turn} decides: {_shares(shares)}")
        case Method.ECMP:
            weights = {one: situation.config.link(one).weight for one in serving}
            whole = sum(weights.values())
            shares = {one: float(weight / whole) for one, weight in weights.items()}
            answer.steps.append(f"the kernel's multipath route decides: {_shares(shares)}")
        case _:
            link = group.preferred[flow.family]
            answer.reason = (
                f"group {name} prefers {link}, {_WHY_PREFERRED[method]} {listed(serving)}"
            )
            answer.steps.append(answer.reason)
    _tell_sticky(answer, group.group)
    if not shares:
        return _by_link(answer, situation, situation.config.link(link), flow)
    if len(shares) > 1:
        answer.candidates = [{"name": one, "share": share} for one, share in shares.items()]
        answer.reason = f"group {name}, method {method.value}: {listed([*shares], 'or')}"
        if method is Method.ECMP:
            number = situation.wish.group_ids[name]
            answer.mark = f"{situation.marks.mark(number):#010x}"
            answer.table = table_of(number)
            answer.steps.append(f"mark {answer.mark} leads to table {answer.table}, of the group")
        return answer
    (link,) = shares
    answer.reason = f"{link} is the only link of group {name} that serves"
    return _by_link(answer, situation, situation.config.link(link), flow)


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.2%}" for name, share in shares.items())


def _tell_slot(
    answer: Explanation, rule: Rule | None, group: Group, decided: Decision, link: str
) -> None:
    own = rule.fields if rule else None
    answer.fields = (own or group.fields).value
    answer.hash, answer.slot = f"{decided.hash:016x}", decided.slot
    answer.reason = f"slot {decided.slot} of group {group.name} belongs to {link}"
    ordered = ", ordered" if group.symmetric else ""
    by = " (the rule's own fields)" if own else ""
    answer.steps += [
        f"hash of {answer.fields}{ordered}{by}: {answer.hash}",
        f"slot {decided.slot} (its top 16 bits) belongs to {link}",
    ]


def _tell_sticky(answer: Explanation, group: Group) -> None:
    if group.sticky:
        whose = "pair of addresses" if group.sticky is Sticky.PAIR else "source"
        answer.steps.append(
            f"sticky: if a connection of this {whose} began less than {group.sticky_ms / 1000:g} s "
            "ago, and its link still serves, this one follows it instead"
        )


def _rejected(answer: Explanation, situation: Situation, reason: str) -> Explanation:
    marks = situation.marks
    answer.reason = reason
    answer.mark = f"{marks.mark(marks.reject):#010x}"
    answer.steps.append(f"{reason}: the client is told that the destination is unreachable")
    return answer


def _left_to_main(answer: Explanation, situation: Situation, reason: str) -> Explanation:
    marks = situation.marks
    answer.reason = reason
    answer.mark = f"{marks.mark(marks.main):#010x}"
    answer.table = "main"
    answer.steps.append(f"{reason}: left to the main table")
    return answer


def _by_link(answer: Explanation, situation: Situation, link: Link, flow: Flow) -> Explanation:
    number = situation.wish.ids[link.name]
    answer.link = link.name
    answer.mark = f"{situation.marks.mark(number):#010x}"
    answer.table = table_of(number)
    answer.source_address = _source(situation, link, flow)
    way = situation.wish.states[link.name].way(flow.family)
    gateway = f" by gateway {way.gateway}" if way.gateway else ""
    answer.steps.append(
        f"mark {answer.mark} leads to table {answer.table}: {link.interface}{gateway}"
    )
    if not way.joined:
        answer.steps.append(f"link {link.name} is down ({way.why}): unreachable until it is back")
    elif way.condition is Condition.DRAINED:
        answer.steps.append(f"link {link.name} is drained, and well otherwise")
    elif not way.alive:
        answer.steps.append(f"link {link.name} is down ({way.why}), but in use all the same")
    if answer.source_address:
        answer.steps.append(f"nat {link.nat.value}: leaves with source {answer.source_address}")
    return answer


def _source(situation: Situation, link: Link, flow: Flow) -> str | None:
    """The source that the provider sees, or None when it cannot be told from here."""
    if link.nat is Nat.NONE or (link.prefix6 and flow.source in link.prefix6):
        return str(flow.source)
    if link.nat is Nat.SNAT:
        address = link.snat_address if flow.family == 4 else link.snat_address6
        if address:
            return str(address)
    interface = situation.wish.facts.interface(link.interface)
    way = situation.wish.states[link.name].way(flow.family)
    found = source_towards(way, interface)
    return str(found) if found else None
