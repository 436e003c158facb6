"""What the router remembers, and when: settings that our own table brings along, what is learned.

What the kernel holds is a dictionary here, and a step that loads the table fills it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from dataplane.config.load import read
from dataplane.config.model import Rule
from dataplane.daemon import router as module
from dataplane.daemon.apply import Observed
from dataplane.daemon.router import Router
from dataplane.daemon.steps import LoadTable, SetSysctl, Step
from dataplane.decide.compiled import program_of
from dataplane.decide.learned import Known
from dataplane.decide.policy import policy
from dataplane.decide.wish import Before, Wish, make_wish
from dataplane.errors import ConfigError, Fault, MachineError
from dataplane.hotpath import Program
from tests.golden.cases import KEY, MACHINE, two

COUNTING = "net/netfilter/nf_conntrack_acct"
# It has everything else.
HELD = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}


def wish_in(directory: Path) -> Wish:
    """Of a file that has applications learned."""
    file = replace(read(two(), "evenlink.toml"), state_dir=directory)
    rule = Rule(1, "isp-a", applications=("bittorrent",))
    return make_wish(replace(file, rules=(rule,)), MACHINE, KEY, Before())


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    settings = dict(HELD)

    def perform(steps: Iterable[Step], _: object) -> None:
        for step in steps:
            if isinstance(step.change, LoadTable):
                settings.setdefault(COUNTING, "0")
            if isinstance(step.change, SetSysctl):
                settings[step.change.key] = step.change.value

    def observe(_: object, keys: Iterable[str]) -> Observed:
        seen = {key: settings.get(key) for key in keys}
        return Observed(frozenset(), frozenset(), frozenset(), None, seen)

    monkeypatch.setattr(module, "perform", perform)
    monkeypatch.setattr(module, "observe", observe)
    monkeypatch.setattr("dataplane.system.nft.read", lambda: None)
    monkeypatch.setattr("dataplane.system.sysctl.read", settings.get)
    return settings


def router_of(wish: Wish) -> Router:
    router = Router(wish.config, lambda _: None)
    router._machine_if_started = SimpleNamespace(netlink=None)  # type: ignore[assignment]
    return router


def test_what_comes_with_the_table_is_set_at_once(tmp_path: Path, kernel: dict[str, str]) -> None:
    wish = wish_in(tmp_path)
    router = router_of(wish)
    plan = wish.plan()
    router._apply(plan, router._observe(plan))
    assert kernel[COUNTING] == "1"
    assert router._state.sysctls[COUNTING] == "0", "so `down` puts it back"


def test_what_is_mended_is_put_back_as_well(tmp_path: Path, kernel: dict[str, str]) -> None:
    wish = wish_in(tmp_path)
    router = router_of(wish)
    kernel[COUNTING] = "0"
    router._mend(wish)
    assert kernel[COUNTING] == "1"
    assert router._directory.load().sysctls[COUNTING] == "0"


def test_what_cannot_be_learned_is_not_kept(tmp_path: Path) -> None:
    """The next program, which a dead link may ask for, is made with what is known."""
    router = router_of(wish_in(tmp_path))
    well = Known()
    router.known = well

    def refuse(_: Known) -> None:
        raise MachineError("too much")

    router._compiled = SimpleNamespace(program=refuse)  # type: ignore[assignment]
    with pytest.raises(MachineError):
        router.learn(Known(sets=(("shops",),)))
    assert router.known is well


def test_what_was_learned_is_no_reason_to_stay_on_a_dead_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fitted before a link died, and does not fit any more: it is left out."""

    def program(of: Wish, known: Known | None = None) -> Program:
        if known:
            raise ConfigError((Fault("the policy", 0, "", "too much"),))
        return program_of(of)

    wish = wish_in(tmp_path)
    router = router_of(wish)
    router.known = Known(sets=(("shops",),))
    monkeypatch.setattr(module, "program_of", program)
    assert router._program(wish).rules == len(policy(wish))
    assert router.known is None
