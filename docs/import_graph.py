"""Prints the picture of the imports, and what is long: `python docs/import_graph.py [TREE]`.

A room is a first-level module or package of dcml_tune, or one of the packages trainables and search_spaces. An arrow leads from
a room to one that it imports, be it inside a function or for type checkers alone, as import-linter counts. Rooms that reach each
other by arrows are a circle. A room lies one layer above the highest room that it imports.

The output depends on nothing but the files of TREE (default: the one that this script lies in), so two outputs can be compared.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import grimp

PACKAGES = ("dcml_tune", "search_spaces", "trainables")
LONGEST = 10
"""So many files and functions are listed."""

Arrows = Mapping[str, set[str]]
"""Node -> the nodes that it imports."""


def main(tree: Path) -> None:
    """Print all of it."""
    sys.path.insert(0, str(tree))
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    # An import of the bare package, for its version, says nothing about the rooms.
    modules = {name: graph.find_modules_directly_imported_by(name) - {"dcml_tune"} for name in graph.modules}
    rooms: dict[str, set[str]] = {room(name): set() for name in modules if name != "dcml_tune"}
    for name, imported in modules.items():
        if name != "dcml_tune":
            rooms[room(name)] |= {room(other) for other in imported} - {room(name)}
    files = {path: path.read_text() for package in PACKAGES for path in sorted((tree / package).rglob("*.py"))}
    functions = [each for path, text in files.items() for each in functions_of(text, path.relative_to(tree))]
    lengths = [(len(text.splitlines()), str(path.relative_to(tree))) for path, text in files.items()]
    levels = layers(rooms)

    print(f"modules                     {len(modules):6}")
    print(f"rooms                       {len(rooms):6}")
    print(f"arrows between rooms        {sum(map(len, rooms.values())):6}")
    print(f"circles of rooms            {len(circles(rooms)):6}")
    print(f"circles of modules          {len(circles(modules)):6}")
    print(f"layers                      {len(levels):6}")
    print(f"layers of the contract      {contract_layers(tree):6}")
    print(f"imports inside functions    {sum(hidden for *_, hidden in functions):6}")
    print(f"lines                       {sum(length for length, _ in lengths):6}")
    print(f"files above 250, 400 lines  {sum(n > 250 for n, _ in lengths):6}, {sum(n > 400 for n, _ in lengths)}")
    print(f"functions above 40, 60      {sum(n > 40 for n, *_ in functions):6}, {sum(n > 60 for n, *_ in functions)}")
    for kind, found in (("rooms", circles(rooms)), ("modules", circles(modules))):
        for members in found:
            print(f"\ncircle of {kind}: {', '.join(members)}")
    print("\nlayers, top to bottom, and how many rooms each room imports:")
    for number, names in reversed(list(enumerate(levels, 1))):
        print(f"{number:4}  {', '.join(f'{name} {len(rooms[name])}' for name in names)}")
    print_longest("files", lengths)
    print_longest("functions", [(length, name) for length, name, _ in functions])


def room(module: str) -> str:
    """The room of a module: `data` of `dcml_tune.data.image_store`, `trainables` of `trainables.study_file`."""
    package, *below = module.split(".")
    return below[0] if package == "dcml_tune" else package


def reached(arrows: Arrows) -> dict[str, set[str]]:
    """For each node, the nodes that some way along the arrows leads to."""
    found: dict[str, set[str]] = {}
    for start in arrows:
        seen: set[str] = set()
        ahead = list(arrows[start])
        while ahead:
            if (node := ahead.pop()) not in seen:
                seen.add(node)
                ahead += arrows[node]
        found[start] = seen
    return found


def circles(arrows: Arrows) -> list[list[str]]:
    """Sets of nodes that reach each other, sorted."""
    reach = reached(arrows)
    found = {tuple(sorted(other for other in reach[node] if node in reach[other])) for node in arrows}
    return [list(members) for members in sorted(found) if members]


def layers(arrows: Arrows) -> list[list[str]]:
    """The nodes of each layer, bottom first; a circle lies in one layer."""
    reach = reached(arrows)
    below = {node: {other for other in reach[node] if node not in reach[other]} for node in arrows}
    found: list[list[str]] = []
    placed: set[str] = set()
    while len(placed) < len(arrows):
        found.append(sorted(node for node in arrows if node not in placed and below[node] <= placed))
        placed |= set(found[-1])
    return found


def contract_layers(tree: Path) -> int:
    """The number of layers in pyproject.toml."""
    contracts = tomllib.loads((tree / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return sum(len(contract["layers"]) for contract in contracts if contract["type"] == "layers")


def functions_of(text: str, path: Path) -> Iterator[tuple[int, str, int]]:
    """Lines, name and number of imports of each function that lies in no other function."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[int, str, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                imports = sum(isinstance(each, ast.Import | ast.ImportFrom) for each in ast.walk(child))
                yield (child.end_lineno or child.lineno) - child.lineno + 1, f"{path}: {prefix}{child.name}", imports
            else:
                yield from walk(child, f"{prefix}{child.name}." if isinstance(child, ast.ClassDef) else prefix)

    return walk(ast.parse(text), "")


def print_longest(what: str, lengths: list[tuple[int, str]]) -> None:
    """Print the longest of them, those of one length by name."""
    print(f"\nlongest {what}, lines:")
    for length, name in sorted(lengths, key=lambda each: (-each[0], each[1]))[:LONGEST]:
        print(f"{length:6}  {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve())
