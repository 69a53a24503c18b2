"""YAML that cannot grow: bounded in bytes, in depth, and in nodes once aliases are followed."""

from pathlib import Path

import yaml

from infinity.errors import UserError

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 64


def read_small_yaml(path: Path) -> str:
    """The text of a YAML file that is safe to parse.

    Args:
        path: the file; it is not trusted.

    Raises:
        UserError: too large, too deep, or with aliases that multiply it beyond measure.
        OSError: unreadable.
        UnicodeDecodeError: not UTF-8.
        yaml.YAMLError: not YAML.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(f"config: {path} is larger than {MAX_BYTES >> 20} MiB")
    text = data.decode("utf-8")
    if problem := growth(text):
        raise UserError(f"config: {path} {problem}")
    return text


def growth(text: str) -> str | None:
    """What makes a YAML text dangerous to build, or ``None`` when nothing does.

    Only events are read here; no node is built, so this costs memory in proportion to the text.

    Raises:
        yaml.YAMLError: not YAML.
    """
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                return f"has the alias *{event.anchor} inside its own anchor"
            total += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, total))
            total += 1
            if len(open_nodes) > MAX_DEPTH:
                return f"is nested more than {MAX_DEPTH} levels deep"
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1 + len(event.value) // 64
        if total > MAX_NODES:
            return f"has more than {MAX_NODES} values after its aliases are followed"
    return None
