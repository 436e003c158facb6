"""`down`: removal without a daemon, and without anything remembered."""

from __future__ import annotations

import contextlib
from pathlib import Path

from dataplane.daemon.apply import observe, perform_all, removal
from dataplane.daemon.calling import NoDaemonError, ask
from dataplane.daemon.messages import Stop
from dataplane.errors import MachineError
from dataplane.system import alone, capabilities, iptables
from dataplane.system.netlink import Netlink
from dataplane.system.state import State, StateDirectory


def remove(state_dir: Path, control_socket: Path) -> list[str]:
    """Stops the daemon, if there is one, and removes all that is ours. Returns what was done.

    Settings are put back as far as the state directory knows what they were.
    """
    lacking = capabilities.missing()
    if lacking:
        raise MachineError(f"{' and '.join(lacking)} missing: run as root")
    with contextlib.suppress(NoDaemonError):
        ask(control_socket, Stop(undo=True))
        return ["the daemon stopped and undid what it had done"]
    done = []
    directory = StateDirectory(state_dir)
    holder = directory.holder()
    if holder is None:
        holder = alone.holder()
    if holder is not None:
        raise MachineError(
            f"an evenlink daemon (process {holder}) runs, but does not answer on "
            f"{control_socket}; end it first, or name its file with --config"
        )
    try:
        state = directory.load()
    except MachineError as fault:
        done.append(f"{fault}: settings stay as they are")
        state = State()
    netlink = Netlink()
    try:
        steps = removal(observe(netlink, ()), state.sysctls)
        perform_all(steps, netlink)
    finally:
        netlink.close()
    done += [step.summary for step in steps]
    iptables.tidy(state.mangle_before)
    directory.remove()
    return done
