"""The `evenlink` command: reads the words, asks the right room, prints the answer.

Data goes to standard output and messages to standard error. Rooms are imported when their command
is called, so that each starts as fast as it can.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dataplane import __version__
from dataplane.config.model import Config, Group
from dataplane.errors import ConfigError, Error, UsageError
from dataplane.tools.demo_options import add_options

DEFAULT_FILE = Path("/etc/evenlink/evenlink.toml")
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0 well, 1 not so, 2 wrong use, 3 refused."""
    parser = _parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        chosen = parser.parse_args(words or ["status"])
        status: int = chosen.command(chosen)
        sys.stdout.flush()
        return status
    except Error as error:
        print(f"evenlink: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does; nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"evenlink: {place}{error.strerror or error}", file=sys.stderr)
        return Error.exit_status
    except Exception as error:
        print(f"evenlink: unexpected {type(error).__name__}: {error}", file=sys.stderr)
        return Error.exit_status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evenlink",
        description="Several uplinks as one, in proportion to their capacities.",
        epilog="Bare `evenlink` is `evenlink status`.",
    )
    parser.add_argument("--version", action="version", version=f"evenlink {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    check = commands.add_parser("check", help="read the file and say every fault, with its place")
    _file(check)
    _json(check)
    check.set_defaults(command=_check)

    plan = commands.add_parser("plan", help="print the steps that `run` would take now")
    _file(plan)
    _json(plan)
    plan.set_defaults(command=_plan)

    run = commands.add_parser("run", help="apply the file and serve, in the foreground")
    _file(run)
    run.set_defaults(command=_run)

    down = commands.add_parser("down", help="remove all that is ours")
    _config(down)
    down.set_defaults(command=_down)

    reload = commands.add_parser("reload", help="make the daemon take its file again")
    _config(reload)
    reload.set_defaults(command=_reload)

    status = commands.add_parser("status", help="links, shares, rates, queue, faults")
    status.add_argument(
        "links", nargs="*", metavar="LINK", help="only these; status 1 if one of them is not up"
    )
    status.add_argument("--follow", action="store_true", help="then tell each transition")
    status.add_argument(
        "-v", "--verbose", action="store_true", help="the targets of links that are up, too"
    )
    _config(status)
    _json(status)
    status.set_defaults(command=_status)

    drain = commands.add_parser("drain", help="no new connections on a link, until `restore`")
    drain.add_argument("link", metavar="LINK")
    _config(drain)
    drain.set_defaults(command=_drain)

    restore = commands.add_parser("restore", help="put a drained link back")
    restore.add_argument("link", metavar="LINK")
    _config(restore)
    restore.set_defaults(command=_restore)

    explain = commands.add_parser("explain", help="the decision for a packet, step by step")
    explain.add_argument("source", nargs="?", metavar="SRC", help="source address")
    explain.add_argument("destination", nargs="?", metavar="DST", help="destination address")
    explain.add_argument("--protocol", default="tcp", help="by name or number (default tcp)")
    explain.add_argument("--sport", type=int, default=0, help="source port")
    explain.add_argument("--dport", type=int, default=0, help="destination port")
    explain.add_argument("--dscp", default="0", help="by name or number (default 0)")
    explain.add_argument("--in", dest="interface", default="", help="the LAN interface it enters")
    explain.add_argument(
        "--stdin",
        action="store_true",
        help="read lines SRC DST [PROTOCOL [SPORT [DPORT [INTERFACE [DSCP]]]]]",
    )
    explain.add_argument("--dead", action="append", default=[], metavar="LINK", help="what if")
    source = explain.add_mutually_exclusive_group()
    source.add_argument("--file", type=Path, help="explain by a file that is not running")
    source.add_argument("--config", type=Path, default=DEFAULT_FILE, help="the daemon's file")
    _json(explain)
    explain.set_defaults(command=_explain)

    doctor = commands.add_parser("doctor", help="what the machine offers or lacks for it")
    doctor.add_argument(
        "file",
        nargs="?",
        type=Path,
        help=f"and for this file (default {DEFAULT_FILE}, if it is there)",
    )
    _json(doctor)
    doctor.set_defaults(command=_doctor)

    demo = commands.add_parser("demo", help="two shaped providers in namespaces, working as one")
    add_options(demo)
    demo.set_defaults(command=_demo)

    version = commands.add_parser("version", help="print the version")
    version.set_defaults(command=_version)
    return parser


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", nargs="?", type=Path, default=DEFAULT_FILE, help=f"default {DEFAULT_FILE}"
    )


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        default=DEFAULT_FILE,
        help=f"the daemon's file, which names its socket (default {DEFAULT_FILE})",
    )


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")


def _read(path: Path) -> Config:
    from dataplane.config.load import read_file

    return read_file(path)


def _socket(path: Path) -> Path:
    """The control socket that the file names; the default one where there is no such file."""
    return _read_or_plain(path).control_socket


def _read_or_plain(path: Path) -> Config:
    """The file, or, where the default one does not exist, what a file that says nothing means."""
    if path == DEFAULT_FILE and not path.exists():
        return Config(lan=(), links=(), balance=Group("default", ()))
    return _read(path)


def _print_json(value: Any) -> None:
    print(json.dumps(value))


def _check(chosen: argparse.Namespace) -> int:
    from dataplane.config.judgements import remarks

    try:
        config = _read(chosen.file)
    except ConfigError as error:
        if chosen.json:
            faults = [
                {"file": one.file, "line": one.line, "key": one.key, "message": one.message}
                for one in error.faults
            ]
            _print_json({"ok": False, "faults": faults, "remarks": []})
        else:
            for fault in error.faults:
                print(fault)
        return error.exit_status
    found = remarks(config)
    if chosen.json:
        _print_json({"ok": True, "faults": [], "remarks": found})
    else:
        for remark in found:
            print(f"{chosen.file}: remark: {remark}", file=sys.stderr)
        print(f"{chosen.file}: well")
    return 0


def _plan(chosen: argparse.Namespace) -> int:
    from dataplane.daemon.forecast import steps_on_this_machine

    steps, remarks = steps_on_this_machine(_read(chosen.file))
    for remark in remarks:
        print(f"evenlink: {remark}", file=sys.stderr)
    if chosen.json:
        _print_json({"steps": [{"tool": step.tool, "line": step.line} for step in steps]})
    else:
        for step in steps:
            print(step.line)
    return 0


def _run(chosen: argparse.Namespace) -> int:
    from dataplane.daemon.main import run

    return run(chosen.file)


def _down(chosen: argparse.Namespace) -> int:
    from dataplane.daemon.remove import remove

    config = _read_or_plain(chosen.config)
    done = remove(config.state_dir, config.control_socket)
    for line in done or ["there was nothing of ours"]:
        print(line)
    return 0


def _reload(chosen: argparse.Namespace) -> int:
    from dataplane.daemon.calling import ask
    from dataplane.daemon.messages import Reload

    ask(_socket(chosen.config), Reload())
    return 0


def _status(chosen: argparse.Namespace) -> int:
    from dataplane.tools.links import status

    return status(
        _socket(chosen.config),
        chosen.links,
        as_json=chosen.json,
        verbose=chosen.verbose,
        following=chosen.follow,
    )


def _drain(chosen: argparse.Namespace) -> int:
    from dataplane.tools.links import drain

    return drain(_socket(chosen.config), chosen.link)


def _restore(chosen: argparse.Namespace) -> int:
    from dataplane.tools.links import restore

    return restore(_socket(chosen.config), chosen.link)


def _explain(chosen: argparse.Namespace) -> int:
    for answers in _explanations(chosen):
        for answer in answers:
            if chosen.json:
                _print_json(answer)
            else:
                from dataplane.tools.status import show_explanation

                show_explanation(answer)
    return 0


def _explanations(chosen: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Answers in portions, as large as the daemon takes them."""
    from dataplane.daemon.calling import ask
    from dataplane.daemon.messages import MOST_FLOWS, Explain

    flows = _flows(chosen)
    if chosen.file is not None:
        from dataplane.daemon.forecast import explanations_by_file

        yield explanations_by_file(_read(chosen.file), flows, chosen.dead)
        return
    socket = _socket(chosen.config)
    while flows:
        # Where the steps are long, the answer is for the first of them only.
        answers = ask(socket, Explain(flows[:MOST_FLOWS], chosen.dead))
        yield answers
        flows = flows[len(answers) or MOST_FLOWS :]


def _flows(chosen: argparse.Namespace) -> list[list[str]]:
    from dataplane.decide.flow import NO_INTERFACE, parse_flow

    if chosen.stdin:
        if chosen.source is not None:
            raise UsageError("explain: give SRC and DST, or --stdin, not both")
        text = sys.stdin.buffer.read().decode(errors="replace")
        lines = {n: line.split() for n, line in enumerate(text.split("\n"), 1) if line.strip()}
    elif chosen.destination is None:
        raise UsageError("explain: expected SRC and DST, or --stdin")
    else:
        ports = [str(chosen.sport), str(chosen.dport)]
        entered = chosen.interface or NO_INTERFACE
        words = [chosen.source, chosen.destination, chosen.protocol, *ports, entered, chosen.dscp]
        lines = {1: words}
    for number, words in lines.items():
        try:
            parse_flow(words)
        except ValueError as fault:
            place = f"line {number}: " if chosen.stdin else ""
            raise UsageError(f"explain: {place}{fault}") from None
    return list(lines.values())


def _doctor(chosen: argparse.Namespace) -> int:
    from dataplane.tools.doctor import doctor

    file = chosen.file or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    return doctor(file, as_json=chosen.json)


def _demo(chosen: argparse.Namespace) -> int:
    from dataplane.tools.demo import run_demo

    return run_demo(chosen)


def _version(_chosen: argparse.Namespace) -> int:
    print(f"evenlink {__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
