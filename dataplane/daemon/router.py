"""The router that the daemon keeps: start, look again, take a new file, stop."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from dataplane.config.marks import Marks
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
from dataplane.daemon.engine import QueueEngine
from dataplane.daemon.look import Machine, running_table
from dataplane.daemon.report import RateMeter
from dataplane.decide.facts import FAMILIES, Facts, Family
from dataplane.decide.fit import misfits
from dataplane.decide.plan import Plan
from dataplane.decide.slots import SLOTS, moved
from dataplane.decide.wish import Wish, make_wish
from dataplane.errors import Error, MachineError
from dataplane.hotpath import Program
from dataplane.system import capabilities, conntrack, iptables, nft, sysctl
from dataplane.system.alone import NamespaceLock
from dataplane.system.state import State, StateDirectory

log = logging.getLogger("evenlink")

# A batch takes well under a millisecond; a worker that needs this long is stuck.
BOUNDARY_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class LinkHistory:
    """Since when a link is as it is, in seconds of Unix time."""

    alive: bool
    since: float


class Router:
    """The running router. `start` either succeeds whole or leaves the machine as it was.

    All calls come from one thread, that of `start`; only what `Answers` reads is read by another.
    """

    def __init__(self, config: Config) -> None:
        self._first_config = config
        self._directory = StateDirectory(config.state_dir)
        self._alone = NamespaceLock()
        self._machine_if_started: Machine | None = None
        self._state = State()
        self._wish: Wish | None = None
        self._engine: QueueEngine | None = None
        self._serial = 0
        # (number, family) of links whose connections are still to be forgotten.
        self._dead: set[tuple[int, Family]] = set()
        self.history: dict[str, LinkHistory] = {}
        self.rates = RateMeter()
        self.mended = 0

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
        except BaseException:
            self._directory.unlock()
            raise

    def release(self) -> None:
        """Gives back what `claim` took. Again does nothing."""
        self._alone.release()
        self._directory.unlock()
        if self._machine_if_started:
            self._machine_if_started.close()
            self._machine_if_started = None

    def start(self) -> None:
        """Binds the queues, then makes the kernel what the plan says. Comes after `claim`."""
        try:
            self._start()
        except BaseException:
            if self._engine:
                self._engine.stop()
            raise

    def _start(self) -> None:
        before = self._directory.load()
        config = self._first_config
        facts = self._look(config)
        key = self._directory.key(config.key)
        wish = make_wish(config, facts, key, before.ids, running_table(before))
        program = Program(wish.program())
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
        self._dead = {
            (number, family)
            for number in {*before.ids.values(), *wish.ids.values()}
            for family in FAMILIES
        }
        self._forget()

    def _look(self, config: Config) -> Facts:
        """The machine as it is; MachineError if the file does not fit it."""
        facts = self._machine.look(config)
        found = misfits(config, facts)
        if found:
            raise MachineError("\n".join(found))
        return facts

    def refresh(self) -> None:
        """Looks at the machine again: follows its links, and mends what another hand undid."""
        self._alone.hang_up()
        old = self.wish
        facts = self._machine.look(old.config)
        wish = make_wish(old.config, facts, old.key, old.ids, old.home)
        if wish == old:
            self._mend(wish)
        else:
            self._switch(wish)
        self._forget()
        if not self.engine.alive():
            for number, fault in self.engine.faults().items():
                log.error("queue %d: its worker ended: %s; starting it anew", number, fault)
            self._replace_engine(wish)

    def reload(self, config: Config) -> None:
        """Takes a new file without losing a packet; a refusal leaves the old one in force."""
        old = self.wish
        # A mark is read by the mask that wrote it, so that goes with the connections.
        for name in ("state_dir", "control_socket", "control_group", "mark_mask"):
            if getattr(config, name) != getattr(old.config, name):
                raise MachineError(f"{name}: cannot change while running; restart instead")
        facts = self._look(config)
        made = config.key is None and old.config.key is None
        key = old.key if made else self._directory.key(config.key)
        wish = make_wish(config, facts, key, self._state.ids, old.home)
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
        log.info("%d of %d slots move to another link", moved(old.home, wish.home), SLOTS)
        self._forget()

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
        self.engine.stop()
        program = Program(wish.program())
        self._engine = QueueEngine(wish.config.queue, program)
        self._engine.start()
        self._serial = program.serial

    def _switch(self, wish: Wish) -> None:
        """From the wish in force to another: the workers' program first, then the kernel."""
        old, state = self.wish, self._state
        program = Program(wish.program())
        self.engine.swap(program)
        try:
            self._state = _state_of(state, wish)
            plan = wish.plan()
            self._apply(plan, self._observe(plan))
        except BaseException:
            self.engine.swap(Program(old.program()))
            self._state = state
            with contextlib.suppress(Error):
                self._directory.store(state)
            raise
        self._serial = program.serial
        self._adopt(wish)
        self._dead |= _died(old, wish)

    def _mend(self, wish: Wish) -> None:
        plan = wish.plan()
        steps = difference(self._observe(plan), plan, self._state.listing)
        if not steps:
            return
        self.mended += 1
        for step in steps:
            log.warning("mended: %s", step.summary)
        perform(steps, self._machine.netlink)
        self._remember_listing()

    def _forget(self) -> None:
        """Forgets the connections of dead links, when no worker can still hold an old verdict.

        Twice, since a packet may have been on its way. What is refused is tried at the next look.
        """
        wish = self.wish
        names = {number: name for name, number in wish.ids.items()}
        dead = {
            (number, family)
            for number, family in self._dead
            if number not in names or not wish.states[names[number]].way(family).alive
        }
        self._dead = dead
        if not dead:
            return
        if not self.engine.wait_passed(self._serial, BOUNDARY_TIMEOUT_S):
            log.error("a queue worker did not finish its batch within %s s", BOUNDARY_TIMEOUT_S)
        marks = Marks(wish.config.mark_mask)
        try:
            for _ in range(2):
                for number, family in sorted(dead):
                    conntrack.forget(marks.mark(number), marks.mask, family)
        except Error as refusal:
            log.error("connections of dead links are not forgotten yet: %s", refusal)
            return
        self._dead = set()

    def _observe(self, plan: Plan) -> Observed:
        return observe(self._machine.netlink, (one.key for one in plan.sysctls))

    def _apply(self, plan: Plan, observed: Observed) -> None:
        steps = difference(observed, plan, self._state.listing)
        originals = dict(self._state.sysctls)
        for one in plan.sysctls:
            now = observed.sysctls[one.key]
            if now is not None and one.key not in originals:
                originals[one.key] = now
                if now != one.value:
                    originals |= sysctl.apart(one.key)
        self._state = _with(self._state, sysctls=originals)
        self._directory.store(self._state)
        for step in steps:
            log.debug("%s", step.line)
        perform(steps, self._machine.netlink)
        self._remember_listing()

    def _remember_listing(self) -> None:
        listing = digest_of(nft.read())
        if listing != self._state.listing:
            self._state = _with(self._state, listing=listing)
            self._directory.store(self._state)

    def _adopt(self, wish: Wish) -> None:
        """Makes the wish the one in force, and tells the log what changed."""
        self._wish = wish
        now = time.time()
        history = {}
        for name, state in wish.states.items():
            before = self.history.get(name)
            if before is not None and before.alive == state.alive:
                history[name] = before
                continue
            history[name] = LinkHistory(state.alive, now)
            log.info("link %s is %s", name, "up" if state.alive else f"down: {state.why}")
        self.history = history

    def sample(self) -> None:
        """Reads the interface counters; called once in a while so that rates are known."""
        names = frozenset(link.interface for link in self.wish.config.links)
        self.rates.sample(time.monotonic(), self._machine.netlink.counters(names))


def _state_of(state: State, wish: Wish) -> State:
    """What has to be known later of this wish."""
    numbers = set(wish.ids.values())
    return _with(
        state,
        ids={name: n for name, n in state.ids.items() if n not in numbers} | dict(wish.ids),
        home_links=wish.home.links,
        home_slots=wish.home.slots,
    )


def _with(state: State, **changes: Any) -> State:
    return msgspec.structs.replace(state, **changes)


def _died(old: Wish, new: Wish) -> set[tuple[int, Family]]:
    """(number, family) of the links that carried a family and do not any more."""
    return {
        (old.ids[name], family)
        for name, state in old.states.items()
        for family in FAMILIES
        if state.way(family).alive
        and not (name in new.states and new.states[name].way(family).alive)
    }
