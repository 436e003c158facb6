"""The router that the daemon keeps: start, look again, take a new file, stop."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from dataplane.config.model import Config
from dataplane.daemon.apply import (
    Observed,
    check_mask,
    difference,
    digest_of,
    observe,
    perform,
    perform_all,
    removal,
)
from dataplane.daemon.connections import Connections
from dataplane.daemon.engine import QueueEngine
from dataplane.daemon.events import Transition
from dataplane.daemon.history import LinkHistory, followed, in_words
from dataplane.daemon.look import Machine, before_of
from dataplane.daemon.report import RateMeter
from dataplane.daemon.tally import Tally
from dataplane.decide.balance import Choices
from dataplane.decide.compiled import Compiled, compiled, program_of
from dataplane.decide.facts import FAMILIES, Facts, Family
from dataplane.decide.fit import absences, conflicts, doubts
from dataplane.decide.learned import Known
from dataplane.decide.liveness import Condition, Judgements
from dataplane.decide.plan import Plan
from dataplane.decide.slots import SLOTS, moved
from dataplane.decide.wish import Wish, make_wish
from dataplane.errors import ConfigError, Error, MachineError, UsageError
from dataplane.hotpath import Program
from dataplane.system import capabilities, iptables, nft, sysctl
from dataplane.system.alone import NamespaceLock
from dataplane.system.state import State, StateDirectory

log = logging.getLogger("evenlink")

# A batch takes well under a millisecond; a worker that needs this long is stuck.
BOUNDARY_TIMEOUT_S = 2.0


class Router:
    """The running router. `start` either succeeds whole or leaves the machine as it was.

    All calls come from one thread, that of `start`; only what `Answers` reads is read by another.
    """

    def __init__(self, config: Config, tell: Callable[[Transition], None]) -> None:
        """`tell` hears of every link that became something else, on the router's thread."""
        self._first_config = config
        self._tell = tell
        self._directory = StateDirectory(config.state_dir)
        self._alone = NamespaceLock()
        self._machine_if_started: Machine | None = None
        self._state = State()
        self._wish: Wish | None = None
        self._engine: QueueEngine | None = None
        self._serial = 0
        self._choices: Choices = {}
        self.known: Known | None = None
        # Of the wish in force, once something was learned under it.
        self._compiled: Compiled | None = None
        self._connections = Connections(
            lambda *asked: self._machine.netlink.destination(*asked), lambda: self.known
        )
        self.history: dict[str, LinkHistory] = {}
        self.rates = RateMeter()
        self.mended = 0
        self.tally = Tally()

    @property
    def _machine(self) -> Machine:
        if self._machine_if_started is None:
            self._machine_if_started = Machine()
        return self._machine_if_started

    @property
    def wish(self) -> Wish:
        """The wish in force. MachineError before `start` and after `stop`."""
        if self._wish is None:
            raise MachineError("the router is not running")
        return self._wish

    @property
    def engine(self) -> QueueEngine:
        """The queue workers. MachineError before `start`."""
        if self._engine is None:
            raise MachineError("the router is not running")
        return self._engine

    @property
    def config(self) -> Config:
        """The file in force; before `start`, the one to begin with."""
        return self._wish.config if self._wish else self._first_config

    def claim(self) -> None:
        """Takes the state directory and the network namespace for this process.

        MachineError if the right to do so is missing, or another daemon has them.
        """
        lacking = capabilities.missing()
        if lacking:
            raise MachineError(
                f"{' and '.join(lacking)} missing: run as root, or give the process these "
                "capabilities"
            )
        self._directory.lock()
        try:
            self._alone.take()
            self._state = self._directory.load()
        except BaseException:
            self.release()
            raise

    @property
    def silent_before(self) -> frozenset[tuple[str, Family]]:
        """(link, family) of what did not answer when an earlier daemon of this boot ended."""
        return frozenset(self._state.silent)

    def release(self) -> None:
        """Gives back what `claim` took. Again does nothing."""
        self._alone.release()
        self._directory.unlock()
        if self._machine_if_started:
            self._machine_if_started.close()
            self._machine_if_started = None

    def look(self, config: Config | None = None) -> Facts:
        """The machine as it is now, as far as the file, or another one, depends on it."""
        return self._machine.look(config or self.config)

    def start(self, facts: Facts, judgements: Judgements) -> None:
        """Binds the queues, then makes the kernel what the plan says. Comes after `claim`.

        MachineError if the file cannot be served on this machine.
        """
        config = self._first_config
        remarks = [*absences(config, facts), *doubts(config, facts)]
        faults = conflicts(config, facts)
        _refuse([*remarks, *faults] if faults else [])
        for remark in remarks:
            log.warning("%s", remark)
        try:
            self._start(config, facts, judgements)
        except BaseException:
            if self._engine:
                self._engine.stop()
            raise

    def _start(self, config: Config, facts: Facts, judgements: Judgements) -> None:
        before = self._state
        key = self._directory.key(config.key)
        wish = make_wish(
            config,
            facts,
            key,
            before_of(before),
            judgements=judgements,
            drained=before.drained,
        )
        program = self._program(wish)
        self._engine = QueueEngine(config.queue, program)
        self._engine.start()
        plan = wish.plan()
        observed = self._observe(plan)
        check_mask(observed, config.mark_mask)
        self._state = _state_of(before, wish)
        if observed.empty and not before.sysctls:
            chains = tuple(sorted(iptables.mangle_chains()))
            self._state = _with(self._state, mangle_before=chains)
        try:
            self._apply(plan, observed)
        except BaseException:
            # The steps are undone already, unless it was what comes after them that failed.
            with contextlib.suppress(Error):
                if observed.empty:
                    self._remove_from_kernel()
                self._directory.put_back(before)
            raise
        self._serial = program.serial
        self._adopt(wish)
        # What died, or left the file, while no daemon ran.
        self._connections.may_have_left({*before.ids.values(), *wish.ids.values()})
        self._settle_connections()

    def refresh(self, facts: Facts, judgements: Judgements) -> None:
        """Follows the links, and mends what another hand undid."""
        self._alone.hang_up()
        old = self.wish
        wish = self._wished(old, facts, judgements)
        if wish == old:
            self._mend(wish)
        else:
            self._switch(wish)
        self._settle_connections()
        if not self.engine.alive():
            for number, fault in self.engine.faults().items():
                log.error("queue %d: its worker ended: %s; starting it anew", number, fault)
            self._replace_engine(wish)

    def judge(self, judgements: Judgements) -> None:
        """Follows what health, or the operator, makes of the links; the machine is as before."""
        old = self.wish
        wish = self._wished(old, old.facts, judgements)
        if wish != old:
            self._switch(wish)
            self._settle_connections()

    def _wished(self, old: Wish, facts: Facts, judgements: Judgements) -> Wish:
        return make_wish(
            old.config,
            facts,
            old.key,
            old.before,
            judgements=judgements,
            drained=self._state.drained,
            choices=self._choices,
        )

    def reload(self, config: Config, facts: Facts, judgements: Judgements) -> None:
        """Takes a new file without losing a packet; a refusal leaves the old one in force."""
        old = self.wish
        # A mark is read by the mask that wrote it, so that goes with the connections.
        for name in ("state_dir", "control_socket", "control_group", "mark_mask"):
            if getattr(config, name) != getattr(old.config, name):
                raise MachineError(f"{name}: cannot change while running; restart instead")
        faults = [*doubts(config, facts), *conflicts(config, facts)]
        _refuse([*absences(config, facts), *faults] if faults else [])
        for remark in absences(config, facts):
            log.warning("%s", remark)
        made = config.key is None and old.config.key is None
        key = old.key if made else self._directory.key(config.key)
        wish = make_wish(
            config,
            facts,
            key,
            replace(old.before, ids=self._state.ids),
            judgements=judgements,
            drained=self._state.drained,
            choices=self._choices,
        )
        if config.queue == old.config.queue:
            self._switch(wish)
        else:
            try:
                self._replace_engine(wish)
                self._switch(wish)
            except BaseException:
                with contextlib.suppress(Error):  # else the next look tries again
                    self._replace_engine(old)
                raise
        count = moved(old.default.home, wish.default.home)
        log.info("%d of %d slots move to another link", count, SLOTS)
        self._settle_connections()

    def choose(self, choices: Choices) -> None:
        """Follows what measurements prefer; links and machine are as before."""
        if choices == self._choices:
            return
        old = self.wish
        wish = make_wish(
            old.config, old.facts, old.key, old.before, states=old.states, choices=choices
        )
        if wish != old:
            self._switch(wish)
            self._settle_connections()
        self._choices = choices

    def learn(self, known: Known) -> None:
        """Gives the workers what is known of names and applications now."""
        if self._compiled is None:
            self._compiled = compiled(self.wish)
        program = self._compiled.program(known)
        # Not before: what is too much must not keep a dead link's program from being made.
        self.known = known
        self.engine.swap(program)
        self._serial = program.serial

    def counters(self) -> dict[str, tuple[int, int]]:
        """By interface of the links, the bytes received and sent since it exists."""
        names = frozenset(link.interface for link in self.wish.config.links)
        return self._machine.netlink.counters(names)

    def drain(self, name: str) -> None:
        """Takes a link out for new connections; those that it has stay.

        UsageError if there is no such link, MachineError if no other one lives.
        """
        self._check_link(name)
        others = [state for state in self.wish.states.values() if state.name != name]
        if not any(state.alive for state in others):
            raise MachineError(f"{name} is the last link that lives: it stays")
        self._set_drained({*self._state.drained, name})

    def restore(self, name: str) -> None:
        """Puts a drained link back; its slots are its own again. UsageError for an unknown one."""
        self._check_link(name)
        self._set_drained({*self._state.drained} - {name})

    def _check_link(self, name: str) -> None:
        if name not in self.wish.ids:
            raise UsageError(f"there is no link {name!r}; {', '.join(self.wish.ids)}")

    def _set_drained(self, names: set[str]) -> None:
        before = self._state
        self._state = _with(before, drained=tuple(sorted(names)))
        try:
            self._directory.store(self._state)
        except BaseException:
            self._state = before
            raise

    def stop(self, undo: bool) -> None:
        """Stops serving. Without `undo` the kernel goes on by itself, and a restart adopts it.

        What is asked of the router from now on is refused.
        """
        self._wish = None
        with contextlib.ExitStack() as last:
            last.callback(self.release)
            if self._engine:
                last.callback(self._engine.stop)
            if undo:
                self._remove_from_kernel()
                self._directory.remove()

    def _remove_from_kernel(self) -> None:
        netlink = self._machine.netlink
        perform_all(removal(observe(netlink, ()), self._state.sysctls), netlink)
        iptables.tidy(self._state.mangle_before)

    def _replace_engine(self, wish: Wish) -> None:
        """Between two listeners the kernel settles connections itself."""
        self.tally.begin_anew(self.engine.counters()["rules"])
        self.engine.stop()
        program = self._program(wish)
        self._engine = QueueEngine(wish.config.queue, program)
        self._engine.start()
        self._serial = program.serial

    def _program(self, wish: Wish) -> Program:
        """What was learned must not stand in the way of a link's death."""
        try:
            return program_of(wish, self.known)
        except ConfigError as refusal:
            if self.known is None:
                raise
            log.error("what was learned is left out: %s", refusal)
            self.known = None
            return program_of(wish)

    def _switch(self, wish: Wish) -> None:
        """From the wish in force to another: the workers' program first, then the kernel."""
        old, state = self.wish, self._state
        program = self._program(wish)
        self.engine.swap(program)
        try:
            self._state = _state_of(state, wish)
            plan = wish.plan()
            self._apply(plan, self._observe(plan))
        except BaseException:
            self.engine.swap(self._program(old))
            self._state = state
            with contextlib.suppress(Error):
                self._directory.store(state)
            raise
        self._serial = program.serial
        self._adopt(wish)
        self._connections.changed(old, wish)

    def _mend(self, wish: Wish) -> None:
        plan = wish.plan()
        observed = self._observe(plan)
        steps = difference(observed, plan, self._state.listing)
        if not steps:
            return
        self.mended += 1
        for step in steps:
            log.warning("mended: %s", step.summary)
        self._remember_settings(plan, observed)
        perform(steps, self._machine.netlink)
        self._remember_listing()

    def _settle_connections(self) -> None:
        self._connections.settle(self.wish, self._wait_passed)

    def _wait_passed(self) -> None:
        """Waits until no worker can hold a verdict of an earlier program."""
        if not self.engine.wait_passed(self._serial, BOUNDARY_TIMEOUT_S):
            log.error("a queue worker did not finish its batch within %s s", BOUNDARY_TIMEOUT_S)

    def _observe(self, plan: Plan) -> Observed:
        return observe(self._machine.netlink, (one.key for one in plan.sysctls))

    def _apply(self, plan: Plan, observed: Observed) -> None:
        steps = difference(observed, plan, self._state.listing)
        self._remember_settings(plan, observed)
        for step in steps:
            log.debug("%s", step.line)
        perform(steps, self._machine.netlink)
        self._remember_listing()
        missing = (key for key, value in observed.sysctls.items() if value is None)
        if any(sysctl.read(key) is not None for key in missing):
            # The table brought a module of the kernel along, and that its settings.
            self._apply(plan, self._observe(plan))

    def _remember_settings(self, plan: Plan, observed: Observed) -> None:
        """What settings were before we changed them first: `down` puts that back."""
        originals = dict(self._state.sysctls)
        for one in plan.sysctls:
            now = observed.sysctls[one.key]
            if now is not None and one.key not in originals:
                originals[one.key] = now
                if now != one.value:
                    originals |= sysctl.apart(one.key)
        self._state = _with(self._state, sysctls=originals)
        self._directory.store(self._state)

    def _remember_listing(self) -> None:
        listing = digest_of(nft.read())
        if listing != self._state.listing:
            self._state = _with(self._state, listing=listing)
            self._directory.store(self._state)

    def _adopt(self, wish: Wish) -> None:
        """Makes the wish the one in force, and tells what changed."""
        self._wish, self._compiled = wish, None
        self.tally.follow(wish, self.engine.counters()["rules"])
        before = self.history
        self.history, transitions = followed(before, wish, time.time())
        for transition in transitions:
            log.info("link %s is %s", transition.link, in_words(wish, transition.link))
            # At the start, what is up is no news.
            if transition.link in before or transition.state != "up":
                self._tell(transition)

    def sample(self) -> None:
        """Reads the interface counters, so that rates are known, and goes on with failback.

        To be called every second or two.
        """
        self._connections.step(self.wish)
        self.rates.sample(time.monotonic(), self.counters())


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise MachineError("\n".join(faults))


def _state_of(state: State, wish: Wish) -> State:
    """What has to be known later of this wish."""
    ids = wish.before.ids
    numbers = set(ids.values())
    return _with(
        state,
        ids={name: n for name, n in state.ids.items() if n not in numbers} | dict(ids),
        homes={name: (home.links, home.slots) for name, home in wish.homes.items()},
        silent=tuple(
            (name, family)
            for name, link in wish.states.items()
            for family in FAMILIES
            if link.way(family).condition in (Condition.SILENT, Condition.POOR)
        ),
        drained=tuple(name for name in state.drained if name in wish.ids),
    )


def _with(state: State, **changes: Any) -> State:
    return msgspec.structs.replace(state, **changes)
