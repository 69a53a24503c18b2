"""The direction of every arrow between the rooms."""

import ast
import fnmatch
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def imports_of(folder: str) -> set[tuple[str, str]]:
    found = set()
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {(str(path.relative_to(ROOT)), name.name) for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add((str(path.relative_to(ROOT)), node.module))
    return found


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_the_generator_knows_no_pruning_method() -> None:
    arrows = imports_of("infinity")
    assert arrows
    assert not [arrow for arrow in arrows if inside(arrow[1], "stepvar_patch")]


def test_the_method_knows_neither_experiments_nor_command_line() -> None:
    back = [
        (path, module)
        for path, module in imports_of("stepvar_patch")
        if not path.startswith(("stepvar_patch/experiments/", "stepvar_patch/cli"))
        and (inside(module, "stepvar_patch.experiments") or inside(module, "stepvar_patch.cli"))
    ]
    assert not back


def test_experiments_do_not_know_the_command_line() -> None:
    back = [a for a in imports_of("stepvar_patch/experiments") if inside(a[1], "stepvar_patch.cli")]
    assert not back


@pytest.mark.parametrize("library", ["pydantic", "omegaconf", "typer"])
@pytest.mark.parametrize("room", ["transformer", "tokenizer", "sampling", "ops", "text"])
def test_model_code_is_free_of_configuration_libraries(room: str, library: str) -> None:
    assert not [a for a in imports_of(f"infinity/{room}") if inside(a[1], library)]


def map_of_the_house() -> list[str]:
    """The indented lines under the first heading of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## The map of the house")[2]
    return [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("    ")]


def test_every_room_of_the_house_is_on_the_map() -> None:
    words = set(re.findall(r"[\w.]+", "\n".join(map_of_the_house())))
    rooms = []
    for package in ("infinity", "stepvar_patch"):
        rooms += [path.parent for path in (ROOT / package).rglob("__init__.py")]
        rooms += [path for path in (ROOT / package).glob("*.py") if path.stem != "__init__"]
    assert len(rooms) > 20
    missing = [r for r in rooms if r.name not in words and not r.name.startswith("cli_")]
    assert not missing


def test_every_file_and_folder_on_the_map_exists() -> None:
    lines = "\n".join(map_of_the_house())
    named = re.findall(r"(?<!\w)(?:[\w*]+/)+(?!\w)|[\w*/]+\.py\b", lines)
    assert len(named) > 30
    rooms = (
        "infinity",
        "stepvar_patch",
        "scripts",
        "configs",
        "weights",
        "tests",
        "docs",
        "results",
    )
    paths = [path for room in rooms for path in [ROOT / room, *(ROOT / room).rglob("*")]]
    there = [f"/{path.relative_to(ROOT)}" for path in paths]
    assert not [name for name in named if not fnmatch.filter(there, f"*/{name.rstrip('/')}")]
