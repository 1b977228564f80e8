"""The contract compared with a source tree of SGLang that is not installed: nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from specvlm_sglang.host.symbol import Symbol
from specvlm_sglang.host.symbols import SYMBOLS
from specvlm_sglang.tools.errors import ToolError

_PLACES = ("python", ".", "..")
"""Of the package, from the folder that is named: a checkout, what holds the package, itself."""
Function = ast.FunctionDef | ast.AsyncFunctionDef
Found = tuple[ast.AST, Path]
"""What a name stands for, and the file that says so."""


class SourceTree:
    """SGLang's source under ``folder``.

    Parameters
    ----------
    folder
        A checkout of SGLang's repository, a folder with the package ``sglang``, or the package.

    Raises
    ------
    ToolError
        There is no such package.
    """

    def __init__(self, folder: Path) -> None:
        self._known: dict[tuple[Path, str], Found | None] = {}
        for place in _PLACES:
            root = (folder / place).resolve()
            if (root / "sglang" / "srt").is_dir() and (place != ".." or folder.name == "sglang"):
                self._root = root
                break
        else:
            raise ToolError(f"--sglang {folder}: no package sglang with a folder srt in it")

    def mismatch(self, symbol: Symbol) -> str | None:
        """What is wrong with a symbol in this tree, or None; as `Symbol.mismatch`."""
        module, _, attribute = symbol.path.partition(":")
        file = self._file(module)
        if file is None and self._root.joinpath(*module.split(".")).is_dir():
            # A package without a file of its own has modules only.
            inner = self._file(f"{module}.{attribute}")
            return None if inner is not None else f"{symbol.path}: missing"
        if file is None:
            return f"{module}: no such module"
        found: Found | None = (_tree(file), file)
        for name in attribute.split("."):
            assert found is not None
            found = self._member(*found, name)
            if found is None:
                return f"{symbol.path}: missing"
        assert found is not None
        accepted = self._parameters(*found)
        if not symbol.parameters or accepted is None:
            return None
        missing = [name for name in symbol.parameters if name not in accepted]
        return f"{symbol.path}: no longer takes {', '.join(missing)}" if missing else None

    def _file(self, module: str) -> Path | None:
        if module.partition(".")[0] != "sglang":
            # Beside an installed package lie others, which are not asked about.
            return None
        path = self._root.joinpath(*module.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
        return None

    def _member(self, owner: ast.AST, file: Path, name: str) -> Found | None:
        """``name`` of a module or class, its bases' and what it imports followed."""
        if isinstance(owner, ast.Module):
            return self._of_module(owner, file, name)
        if not isinstance(owner, ast.ClassDef):
            # A value: what it has is not written here.
            return owner, file
        own = _members(owner).get(name)
        if own is not None:
            return own, file
        for base in owner.bases:
            found = self._named(base, file)
            inherited = (owner, file) if found is None else self._member(*found, name)
            if inherited is not None:
                # A base of another package is taken at its word.
                return inherited
        return None

    def _of_module(self, tree: ast.Module, file: Path, name: str) -> Found | None:
        asked = file, name
        if asked in self._known:
            return self._known[asked]
        # Imported from here in turn, it can only be a module.
        self._known[asked] = self._submodule(file, name)
        self._known[asked] = self._named_in(tree, file, name)
        return self._known[asked]

    def _named_in(self, tree: ast.Module, file: Path, name: str) -> Found | None:
        held: Found | None = None
        for node in _index(file).get(name, []):
            held = node, file
            if isinstance(node, ast.ImportFrom):
                meant = next(one.name for one in node.names if name == (one.asname or one.name))
                held = self._imported(node, meant, file) or held
        for node in _index(file).get("*", []) if held is None else []:
            assert isinstance(node, ast.ImportFrom)
            held = self._imported(node, name, file) or held
        return self._submodule(file, name) if held is None else held

    def _submodule(self, file: Path, name: str) -> Found | None:
        is_package = file.name == "__init__.py"
        inner = self._file(f"{self._module_of(file)}.{name}") if is_package else None
        return None if inner is None else (_tree(inner), inner)

    def _imported(self, node: ast.ImportFrom, name: str, file: Path) -> Found | None:
        """Where ``name`` comes from; None where that is not in the tree."""
        module = node.module or ""
        if node.level:
            package = self._module_of(file).split(".")
            kept = len(package) - node.level + (file.name == "__init__.py")
            module = ".".join([*package[:kept], *([module] if module else [])])
        inner = self._file(module)
        return None if inner is None else self._of_module(_tree(inner), inner, name)

    def _module_of(self, file: Path) -> str:
        parts = file.relative_to(self._root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def _named(self, expression: ast.AST, file: Path) -> Found | None:
        """The class that an expression of a module names; None where it is not in the tree."""
        if isinstance(expression, ast.Subscript):
            expression = expression.value
        if not isinstance(expression, ast.Name):
            return None
        found = self._of_module(_tree(file), file, expression.id)
        return found if found is not None and isinstance(found[0], ast.ClassDef) else None

    def _parameters(self, node: ast.AST, file: Path) -> set[str] | None:
        """Names that a callable takes; None where the source does not say."""
        if isinstance(node, Function):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            return {argument.arg for argument in every}
        if not isinstance(node, ast.ClassDef):
            return None
        if any("dataclass" in ast.dump(one) for one in node.decorator_list):
            return self._fields(node, file)
        init = self._member(node, file, "__init__")
        known = init is not None and isinstance(init[0], Function)
        return self._parameters(*init) if init is not None and known else self._fields(node, file)

    def _fields(self, node: ast.ClassDef, file: Path) -> set[str]:
        found = {
            statement.target.id
            for statement in _statements(node.body)
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        }
        for base in node.bases:
            named = self._named(base, file)
            if named is not None and isinstance(named[0], ast.ClassDef):
                found |= self._fields(named[0], named[1])
        return found


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def _index(file: Path) -> dict[str, list[ast.stmt]]:
    """Statements of a module by the names that they give; "*" for imports of everything."""
    found: dict[str, list[ast.stmt]] = {}
    for node in _statements(_tree(file).body):
        names = _names(node)
        if isinstance(node, ast.ImportFrom):
            names = {alias.asname or alias.name for alias in node.names}
        for name in names:
            found.setdefault(name, []).append(node)
    return found


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a block, and those under its conditions, attempts and contexts."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for block in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, block, []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)


def _names(node: ast.AST) -> set[str]:
    """What a statement gives a name to."""
    if isinstance(node, Function | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        targets = [node.target]
    else:
        return set()
    return {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}


@cache
def _members(owner: ast.ClassDef) -> dict[str, ast.AST]:
    """What a class has by name: its body's, and what its methods set on the object."""
    found: dict[str, ast.AST] = {}
    for node in _statements(owner.body):
        found |= dict.fromkeys(_names(node), node)
    for inner in ast.walk(owner):
        if not isinstance(inner, ast.Attribute) or not isinstance(inner.ctx, ast.Store):
            continue
        if isinstance(inner.value, ast.Name) and inner.value.id == "self":
            found.setdefault(inner.attr, inner)
    return found


def compare(folder: Path, symbols: Sequence[Symbol]) -> list[str]:
    """What moved or changed in SGLang's source under ``folder``, of these symbols of SGLang's.

    Raises
    ------
    ToolError
        No such source, or a file of it cannot be parsed.
    """
    tree = SourceTree(folder)
    try:
        wrong = [tree.mismatch(one) for one in symbols if one.path.startswith("sglang.")]
    except SyntaxError as error:
        raise ToolError(f"--sglang {folder}: {error}") from error
    return [line for line in dict.fromkeys(wrong) if line is not None]


def examine_source(folder: Path) -> int:
    """Print, room by room, what moved; returns 0 where nothing did, else 1.

    Raises
    ------
    ToolError
        See `compare`.
    """
    moved = 0
    for room, symbols in SYMBOLS.items():
        wrong = compare(folder, symbols)
        moved += len(wrong)
        if wrong:
            print("\n".join([f"{room}:", *(f"  {line}" for line in wrong)]))
    total = sum(len(symbols) for symbols in SYMBOLS.values())
    print(f"{moved} of {total} symbols moved or changed.")
    return int(moved > 0)
