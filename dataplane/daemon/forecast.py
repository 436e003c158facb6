"""What would happen, without a daemon and without a change: `plan`, and `explain --file`."""

from __future__ import annotations

from typing import Any

from dataplane.config.model import Config
from dataplane.daemon.apply import check_mask, difference, observe
from dataplane.daemon.look import Machine, before_of
from dataplane.daemon.steps import Step
from dataplane.decide.balance import all_alive
from dataplane.decide.explain import Situation, explain
from dataplane.decide.facts import Destination, Facts
from dataplane.decide.fit import absences, conflicts, doubts
from dataplane.decide.flow import parse_flow
from dataplane.decide.liveness import Condition, Judgement
from dataplane.decide.wish import make_wish
from dataplane.errors import MachineError, UsageError
from dataplane.system import capabilities
from dataplane.system.state import StateDirectory


def steps_on_this_machine(config: Config) -> tuple[list[Step], list[str]]:
    """The steps that `run` would take now, and remarks for the reader."""
    lacking = capabilities.missing()
    if lacking:
        raise MachineError(f"{' and '.join(lacking)} missing: run as root")
    directory = StateDirectory(config.state_dir)
    remarks = []
    key = directory.peek_key(config.key)
    if key is None:
        key = 0
        remarks.append("no key has been made yet: the seed of the fallback's jhash will differ")
    state = directory.load()
    machine = Machine()
    try:
        facts = machine.look(config)
        remarks += [*absences(config, facts), *doubts(config, facts)]
        found = conflicts(config, facts)
        if found:
            raise MachineError("\n".join([*remarks, *found]))
        # As `run` would begin: what was silent before has to prove itself.
        silent = {way: Judgement(Condition.SILENT) for way in state.silent}
        wish = make_wish(
            config,
            facts,
            key,
            before_of(state),
            judgements=silent,
            drained=state.drained,
        )
        plan = wish.plan()
        observed = observe(machine.netlink, (one.key for one in plan.sysctls))
        check_mask(observed, config.mark_mask)
        return difference(observed, plan, state.listing), remarks
    finally:
        machine.close()


def explanations_by_file(
    config: Config, flows: list[list[str]], dead: list[str]
) -> list[dict[str, Any]]:
    """Decisions by a file alone: every link alive, and no route of this machine asked."""
    for name in dead:
        if all(link.name != name for link in config.links):
            raise UsageError(f"--dead: there is no link {name!r}")
    directory = StateDirectory(config.state_dir)
    key = directory.peek_key(config.key)
    if key is None:
        raise MachineError(
            f"no key: {config.state_dir} has none yet and the file names none; "
            "`run` makes one, or set `key`"
        )
    state = directory.load()
    nothing_seen = Facts((), native_queue=False)
    alive = all_alive(config)
    wish = make_wish(config, nothing_seen, key, before_of(state), states=alive)
    situation = Situation.of(wish.without(dead))
    return [explain(situation, parse_flow(words), Destination("", "")).as_dict() for words in flows]
