"""etc/qgisd.toml shows every key with its default: file and models say the same."""

import re
from pathlib import Path

from pydantic import BaseModel

from qgisd import config

EXAMPLE = Path(__file__).resolve().parents[2] / "etc" / "qgisd.toml"


def keys_of(model: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        kind = field.annotation
        key = prefix + name
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= keys_of(kind, key + ".")
        else:
            found.add(key)
    return found


def keys_in(text: str) -> set[str]:
    found, table = set(), ""
    for line in text.splitlines():
        if match := re.match(r"\[([a-z.]+)\]", line):
            table = match[1] + "."
        elif match := re.match(r"([a-z_]+) = ", line):
            found.add(table + match[1])
    return found


def test_the_example_is_valid_and_holds_only_defaults() -> None:
    assert config.load(EXAMPLE, {}).config == config.Config()


def test_the_example_shows_every_key() -> None:
    assert keys_in(EXAMPLE.read_text()) == keys_of(config.Config) - {"pools"}


def test_every_key_says_why() -> None:
    lines = EXAMPLE.read_text().splitlines()
    bare = [line for line in lines if re.match(r"[a-z_]+ = ", line) and "#" not in line]
    assert bare == []
