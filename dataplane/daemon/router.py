"""The router that the daemon keeps: start, look again, take a new file, stop.

Only the queue workers run beside it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from dataplane.config.marks import Marks
from dataplane.config.model import Config
from dataplane.daemon.apply import check_mask, observe, perform, removal
from dataplane.daemon.apply import difference as steps_between
from dataplane.daemon.engine import QueueEngine
from dataplane.daemon.look import Machine, running_table
from dataplane.daemon.report import RateMeter, status_report
from dataplane.decide.explain import Situation, explain, parse_flow
from dataplane.decide.facts import FAMILIES, Family
from dataplane.decide.fit import misfits
from dataplane.decide.wish import Wish, make_wish
from dataplane.errors import Error, MachineError, UsageError
from dataplane.hotpath import Program
from dataplane.system import capabilities, conntrack, iptables, sysctl
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

    All calls come from one thread, that of `start`.
    """

    def __init__(self, config: Config) -> None:
        self._directory = StateDirectory(config.state_dir)
        self._alone = NamespaceLock()
        self._machine_if_started: Machine | None = None
        self._rates = RateMeter()
        self._state = State()
        self._wish: Wish | None = None
        self._engine: QueueEngine | None = None
        self._history: dict[str, LinkHistory] = {}
        self._config = config
        self.mended = 0

    @property
    def _machine(self) -> Machine:
        if self._machine_if_started is None:
            self._machine_if_started = Machine()
        return self._machine_if_started

    @property
    def wish(self) -> Wish:
        if self._wish is None:
            raise MachineError("the router has not been started")
        return self._wish

    @property
    def config(self) -> Config:
        return self._config

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
        facts = self._machine.look(self._config)
        found = misfits(self._config, facts)
        if found:
            raise MachineError("\n".join(found))
        key = self._directory.key(self._config.key)
        wish = make_wish(self._config, facts, key, before.ids, running_table(before))
        self._engine = QueueEngine(self._config.queue, Program(wish.program()))
        self._engine.start()
        observed = observe(self._machine.netlink, ())
        check_mask(observed, self._config.mark_mask)
        had_nothing = observed.empty
        self._state = replace_state(before, wish)
        if had_nothing and not before.sysctls:
            chains = tuple(sorted(iptables.mangle_chains()))
            self._state = _with(self._state, mangle_before=chains)
        try:
            self._apply(wish)
        except Exception:
            if had_nothing:
                # The steps are undone already, unless it was what comes after them that failed.
                with contextlib.suppress(Error):
                    self._undo()
            raise
        self._adopt(wish)

    def refresh(self) -> None:
        """Looks at the machine again: follows its links, and mends what another hand undid."""
        self._alone.hang_up()
        self._revive()
        old = self.wish
        facts = self._machine.look(self._config)
        wish = make_wish(self._config, facts, old.key, old.ids, old.home)
        if wish == old:
            steps = self._steps(wish)
            if steps:
                self.mended += 1
                for step in steps:
                    log.warning("mended: %s", step.summary)
                perform(steps, self._machine.netlink)
                self._remember_listing()
            return
        self._switch(wish)

    def reload(self, config: Config) -> None:
        """Takes a new file without losing a packet; a refusal leaves the old one in force."""
        # A mark is read by the mask that wrote it, so that goes with the connections.
        for name in ("state_dir", "control_socket", "control_group", "mark_mask"):
            if getattr(config, name) != getattr(self._config, name):
                raise MachineError(f"{name}: cannot change while running; restart instead")
        old = self.wish
        facts = self._machine.look(config)
        found = misfits(config, facts)
        if found:
            raise MachineError("\n".join(found))
        made = config.key is None and self._config.key is None
        key = old.key if made else self._directory.key(config.key)
        wish = make_wish(config, facts, key, self._state.ids, old.home)
        old_config, self._config = self._config, config
        try:
            if config.queue != old_config.queue:
                self._replace_engine(wish, old_config)
            self._switch(wish)
        except Error:
            self._config = old_config
            if config.queue != old_config.queue:
                self._replace_engine(old, config)
            raise

    def stop(self, undo: bool) -> None:
        """Stops serving. Without `undo` the kernel goes on by itself, and a restart adopts it."""
        try:
            if undo:
                self._undo()
        finally:
            if self._engine:
                self._engine.stop()
            self.release()

    def _undo(self) -> None:
        netlink = self._machine.netlink
        perform(removal(observe(netlink, ()), self._state.sysctls), netlink)
        iptables.tidy(self._state.mangle_before)
        self._directory.remove()

    def _revive(self) -> None:
        """A worker that its socket failed is started anew; the kernel settled meanwhile."""
        assert self._engine is not None, "a router that was started has one"
        if self._engine.alive():
            return
        for number, fault in self._engine.faults().items():
            log.error("queue %d: its worker ended: %s; starting it anew", number, fault)
        self._replace_engine(self.wish, self._config)

    def _replace_engine(self, wish: Wish, old_config: Config) -> None:
        """Between two listeners the kernel settles connections itself."""
        assert self._engine is not None, "a router that was started has one"
        self._engine.stop()
        try:
            self._engine = QueueEngine(wish.config.queue, Program(wish.program()))
        except Error:
            self._engine = QueueEngine(old_config.queue, Program(self.wish.program()))
            self._engine.start()
            raise
        self._engine.start()

    def _switch(self, wish: Wish) -> None:
        """From the wish in force to another, in the order that keeps connections safe.

        First the workers' program and the kernel's rules, then, when no worker can still hold a
        verdict of the old program, the dead links' connections are forgotten; once more, since a
        packet may have been on its way.
        """
        assert self._engine is not None, "a router that was started has one"
        old = self.wish
        program = Program(wish.program())
        self._engine.swap(program)
        try:
            self._state = replace_state(self._state, wish)
            self._apply(wish)
        except Error:
            self._engine.swap(Program(old.program()))
            self._state = replace_state(self._state, old)
            raise
        self._adopt(wish)
        dead = _died(old, wish)
        if not dead:
            return
        if not self._engine.wait_passed(program.serial, BOUNDARY_TIMEOUT_S):
            log.error("a queue worker did not finish its batch within %s s", BOUNDARY_TIMEOUT_S)
        marks = Marks(wish.config.mark_mask)
        for _ in range(2):
            for number, family in dead:
                conntrack.forget(marks.mark(number), marks.mask, family)

    def _steps(self, wish: Wish) -> list[Any]:
        plan = wish.plan()
        observed = observe(self._machine.netlink, (one.key for one in plan.sysctls))
        return steps_between(observed, plan, self._state.listing)

    def _apply(self, wish: Wish) -> None:
        steps = self._steps(wish)
        originals = dict(self._state.sysctls)
        for one in wish.plan().sysctls:
            now = sysctl.read(one.key)
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
        self._state = _with(self._state, listing=observe(self._machine.netlink, ()).listing)
        self._directory.store(self._state)

    def _adopt(self, wish: Wish) -> None:
        """Makes the wish the one in force, and tells the log what changed."""
        self._wish = wish
        now = time.time()
        for name, state in wish.states.items():
            before = self._history.get(name)
            if before is None or before.alive != state.alive:
                self._history[name] = LinkHistory(state.alive, now)
                log.info("link %s is %s", name, "up" if state.alive else f"down: {state.why}")
        for name in self._history.keys() - wish.states.keys():
            del self._history[name]

    def sample(self) -> None:
        """Reads the interface counters; called once in a while so that rates are known."""
        names = frozenset(link.interface for link in self._config.links)
        self._rates.sample(time.monotonic(), self._machine.netlink.counters(names))

    def status(self) -> dict[str, Any]:
        """The answer of `evenlink status`."""
        assert self._engine is not None, "a router that was started has one"
        return status_report(
            self.wish,
            {name: one.since for name, one in self._history.items()},
            self._engine,
            self._rates,
            self.mended,
        )

    def explain(self, flows: list[list[str]], dead: list[str]) -> list[dict[str, Any]]:
        """The decisions for these flows, as it is now or as if these links were dead."""
        wish = self.wish
        for name in dead:
            if name not in wish.ids:
                raise UsageError(f"--dead: there is no link {name!r}; {', '.join(wish.ids)}")
        situation = Situation.of(wish.without(dead))
        marks = situation.marks
        answers = []
        for words in flows:
            try:
                flow = parse_flow(words)
            except ValueError as fault:
                raise UsageError(f"explain: {' '.join(words)}: {fault}") from fault
            destination = self._machine.netlink.destination(
                str(flow.destination), marks.mark(marks.ask)
            )
            answers.append(explain(situation, flow, destination).as_dict())
        return answers


def replace_state(state: State, wish: Wish) -> State:
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


def _died(old: Wish, new: Wish) -> list[tuple[int, Family]]:
    """(number, family) of the links that carried a family and do not any more."""
    return [
        (old.ids[name], family)
        for name, state in old.states.items()
        for family in FAMILIES
        if state.way(family).alive
        and not (name in new.states and new.states[name].way(family).alive)
    ]
