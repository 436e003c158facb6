"""The docs are true as far as a machine can tell: examples parse, commands exist, links resolve."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dataplane.config.load import read
from dataplane.errors import ConfigError
from dataplane.tools import cli

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
        *(ROOT / "docs").rglob("*.md"),
    ]
)
README = ROOT / "README.md"
COMMANDS = ROOT / "docs/operate/commands.md"
FIRST_SCREEN_LINES = 32
LATER = "# from a later version"

# The first column of a fence: blocks inside a list are not used in these docs.
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, where it stands, and the heading of the second level above it."""

    page: Path
    line: int
    language: str
    text: str
    section: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(language: str | None = None) -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text()
        for found in FENCE.finditer(text):
            if language is None or found[1] == language:
                line = text.count("\n", 0, found.start()) + 1
                sections = re.findall(r"^## (.+)$", text[: found.start()], re.MULTILINE)
                yield Block(page, line, found[1], found[2], sections[-1] if sections else "")


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def command_lines() -> Iterator[tuple[Block, list[str]]]:
    """Every shell command that the docs show, in words; continued and joined ones apart."""
    for block in blocks():
        for line in block.text.splitlines():
            shown = line.removeprefix("$ ") if line.startswith("$ ") else line
            if block.language == "sh" or line.startswith("$ "):
                for command in re.split(r"&&|\|\||;", shown):
                    yield block, shlex.split(command, comments=True)


def exists(command: str) -> bool:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    return end.value.code == 0


def faults(block: Block) -> list[str]:
    """What the loader says of a TOML block. Keys alone belong to the table their section is about.

    A piece of a file may miss what it leaves out. Files of lists are taken to be there.
    """
    text = block.text
    whole = re.search(r"^lan\b", text, re.MULTILINE) and "[link." in text
    if block.section.startswith("[") and not text.startswith("["):
        text = f"{block.section}\n{text}"
    try:
        read(text, str(block), lambda path: b"192.0.2.0/24\n")
    except ConfigError as error:
        messages = [fault.message for fault in error.faults]
        return [one for one in messages if whole or not one.startswith("missing:")]
    return []


@pytest.mark.parametrize("block", list(blocks("toml")), ids=str)
def test_toml_examples_are_legal(block: Block) -> None:
    found = faults(block)
    if block.text.startswith(LATER):
        assert any("not known in this version" in one for one in found), "it is of this version"
    else:
        assert found == []


def refused(words: list[str]) -> bool:
    try:
        cli._parser().parse_args(words or ["status"])
    except SystemExit as end:
        return end.code != 0
    return False


def test_commands_that_are_shown_are_understood() -> None:
    shown = [(block, words) for block, words in command_lines() if words[:1] == ["evenlink"]]
    assert shown
    for block, words in shown:
        assert not refused(words[1:]), f"{block}: {shlex.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_named_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code in INLINE.findall(prose(page)):
        words = code.split()
        if words[0] == "evenlink" and len(words) > 1 and re.fullmatch(r"[a-z-]+", words[1]):
            assert exists(words[1]), f"{page.name}: `{code}`"


def test_make_targets_that_are_shown_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = [(block, words) for block, words in command_lines() if words[:1] == ["make"]]
    assert shown
    for block, words in shown:
        for word in words[1:]:
            assert "=" in word or word in targets, f"{block}: make {word}"


def test_every_command_and_option_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    described = {
        heading.split()[0]: heading
        for heading in re.findall(r"^### (.+)$", COMMANDS.read_text(), re.MULTILINE)
    }
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    known = re.findall(r"^    ([a-z]+) ", capsys.readouterr().out, re.MULTILINE)
    assert sorted(described) == sorted(known)
    for command, heading in described.items():
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        options = set(re.findall(r"(--[a-z0-9-]+)", capsys.readouterr().out)) - {"--help"}
        section = COMMANDS.read_text().split(f"### {heading}\n")[1].split("\n##")[0]
        missing = {one for one in options if one not in heading and one not in section}
        assert not missing, f"commands.md says nothing of {command} {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name}: {target}"
        assert found.is_relative_to(ROOT), f"{page.name}: {target} leaves the repository"
        if anchor:
            anchors = {_anchor(heading) for heading in HEADING.findall(prose(found))}
            assert anchor in anchors, f"{page.name}: {target}"


def test_first_screen_of_the_readme() -> None:
    """The picture, the file and the two commands, before anything else."""
    screen = "\n".join(README.read_text().splitlines()[:FIRST_SCREEN_LINES])
    for needed in ("](docs/packet-path.svg)", "```toml\n", "make demo", "make test"):
        assert needed in screen


def _anchor(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    plain = re.sub(r"[^\w\- ]", "", heading.lower())
    return plain.replace(" ", "-")
