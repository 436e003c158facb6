"""docs/operate/configuration.md has an entry for each key, and each of its examples loads."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.config import keys
from dataplane.config import load as loading
from dataplane.config.model import Config

TEXT = (Path(__file__).parents[2] / "docs/operate/configuration.md").read_text()

# What stands around an example so that it is a whole file; {} is the example.
FRAMES = {
    "Top": "{}\n[link.uplink]\ninterface = 'eth0'\ncapacity = '1Mbit'\n",
    "[link.NAME]": "[link.uplink]\n{}\n",
}
LINK_PROBE = "[[link.NAME.probe]]"
TABLE = "[link.uplink]\ninterface = 'eth0'\ncapacity = '1Mbit'\n%s\n{}\n"


# The tables of examples, where a name belongs in the heading.
NAMED = {"[list.NAME]": "[list.x]"}


def load(text: str) -> Config:
    """The example, with every file that it names there."""
    return loading.read(text, "example", lambda path: b"192.0.2.0/24\n")


def entries() -> Iterator[tuple[str, str, str]]:
    """(heading of the table, key, text of the entry)."""
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        for entry in re.split(r"^### ", body, flags=re.MULTILINE)[1:]:
            key, _, text = entry.partition("\n")
            yield heading, key, text


def test_each_key_has_an_entry_and_each_entry_a_key() -> None:
    tables = {"queue", "link", "probe", "balance", "group", "list", "rule", "log"}
    documented = [(heading, key) for heading, key, _ in entries()]
    assert documented == [
        *(("Top", key) for key in keys.TOP if key not in tables),
        *(("[link.NAME]", key) for key in keys.LINK if key != "probe"),
        *(("[probe]", key) for key in keys.DEFAULT_PROBE),
        *(("[balance]", key) for key in keys.BALANCE),
        *(("[list.NAME]", key) for key in keys.LIST),
        *(("[[rule]]", key) for key in keys.RULE),
        *(("[queue]", key) for key in keys.QUEUE),
        *(("[log]", key) for key in keys.LOG),
    ]


@pytest.mark.parametrize(("heading", "key", "text"), list(entries()))
def test_an_entry_says_what_it_must_and_its_example_loads(
    heading: str, key: str, text: str
) -> None:
    assert text.startswith(("Required", "Optional"))
    assert "\nLive connections: " in text
    (example,) = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    assert re.search(rf"^{key} = ", example, flags=re.MULTILINE)
    frame = FRAMES.get(heading, TABLE % NAMED.get(heading, heading))
    if heading == "[probe]" and key in keys.PROBE:
        own = TABLE % LINK_PROBE.replace("NAME", "uplink")
        load(f"lan = ['br-lan']\n{own.format(example)}")
    if heading == "[link.NAME]":
        if not example.startswith("interface"):
            example += "interface = 'eth0'\n"
        if not re.search(r"^(capacity|download|share) ", example, flags=re.MULTILINE):
            example += "capacity = '1Mbit'\n"
    file = frame.format(example)
    load(file if key == "lan" else f"lan = ['br-lan']\n{file}")


def test_the_probes_of_one_link_are_described() -> None:
    (text,) = re.findall(rf"^## {re.escape(LINK_PROBE)}\n(.*?)^## ", TEXT, re.DOTALL | re.MULTILINE)
    assert "\nLive connections: " in text
    (example,) = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    file = (TABLE % "").replace("uplink", "fibre").format(example)
    config = load(f"lan = ['br-lan']\n{file}")
    assert len(config.link("fibre").probes) == 2


def test_groups_are_described() -> None:
    (text,) = re.findall(r"^## \[group\.NAME\]\n(.*?)^## ", TEXT, re.DOTALL | re.MULTILINE)
    assert "\nLive connections: " in text
    (example,) = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    links = "".join(
        f"[link.{name}]\ninterface = '{name}'\ncapacity = '1Mbit'\n" for name in ("fibre", "lte")
    )
    config = load(f"lan = ['br-lan']\n{links}{example}")
    assert [group.name for group in config.groups] == ["voice", "bulk"]


def test_the_whole_file_loads() -> None:
    load(re.findall(r"```toml\n(.*?)```", TEXT, flags=re.DOTALL)[0])
