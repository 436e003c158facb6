"""The options of `evenlink demo`, apart from the demo itself, which imports much."""

from __future__ import annotations

import argparse
from pathlib import Path

DEFAULT_PICTURE = Path("evenlink-demo.png")
_MOST_LINKS = 8


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds `links_bps`, `pairs`, `seconds`, `ipv6_only`, `picture`, `json` to the parser."""
    parser.add_argument(
        "--links",
        dest="links_bps",
        type=capacities,
        default=[10_000_000, 20_000_000],
        metavar="MBIT:MBIT",
        help="the providers' rates in Mbit/s, such as 5:10:25 (default 10:20)",
    )
    parser.add_argument("--ipv6-only", action="store_true", help="a lab without IPv4")
    parser.add_argument(
        "--pairs", type=_pairs, default=300, metavar="N", help="address pairs, at least (300)"
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=16.0,
        metavar="N",
        help="how long all links carry the load (16)",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help=f"where the picture goes, .png or .svg (default {DEFAULT_PICTURE}; with --json none)",
    )
    parser.add_argument("--json", action="store_true", help="for programs")


def capacities(text: str) -> list[int]:
    """ "10:20" -> [10000000, 20000000]; argparse.ArgumentTypeError says what is legal."""
    legal = f'expected 2 to {_MOST_LINKS} rates in Mbit/s from 0.5 to 200, such as "10:20"'
    try:
        rates = [round(float(word) * 1_000_000) for word in text.split(":")]
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f'{legal}, got "{text}"') from None
    if not 2 <= len(rates) <= _MOST_LINKS or not all(500_000 <= r <= 200_000_000 for r in rates):
        raise argparse.ArgumentTypeError(f'{legal}, got "{text}"')
    return rates


def _pairs(text: str) -> int:
    if not text.isdecimal() or not 20 <= int(text) <= 5000:
        raise argparse.ArgumentTypeError(f'expected 20 to 5000 address pairs, got "{text}"')
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 4 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f'expected 4 to 3600 seconds, got "{text}"')
    return seconds
