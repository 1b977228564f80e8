"""What our own source uses of SGLang stands in the contract; read from every file's syntax tree."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import sglang

import specvlm_sglang
from specvlm_sglang.cpu.kernels import TWINS
from specvlm_sglang.host import contract

PACKAGE = Path(specvlm_sglang.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
KNOWN = {symbol.path for symbols in contract.rooms().values() for symbol in symbols}

PUBLIC = {
    "sglang.srt.platforms:current_platform": (
        "documented by its module as what everybody asks; reading it chooses the platform"
    ),
}
"""Names of SGLang's that carry a promise, and so need no line in the contract."""

ASKING = ("contract.require", "contract.mismatches")
SCHEDULE = "sglang.srt.managers.schedule_batch"
OWNERS = {
    "batch": f"{SCHEDULE}:ScheduleBatch",
    "view": f"{SCHEDULE}:ScheduleBatch",
    "req": f"{SCHEDULE}:Req",
    "item": f"{SCHEDULE}:MultimodalDataItem",
    "server_args": "sglang.srt.server_args:ServerArgs",
    "sampling_info": "sglang.srt.sampling.sampling_batch_info:SamplingBatchInfo",
    "verify_input": "sglang.srt.speculative.eagle_info:EagleVerifyInput",
    "forward_batch": "sglang.srt.model_executor.forward_batch_info:ForwardBatch",
    "output": "sglang.srt.managers.utils:GenerationBatchResult",
    "logits_output": "sglang.srt.layers.logits_processor:LogitsProcessorOutput",
    "request_obj": "sglang.srt.managers.io_struct:GenerateReqInput",
    "record": (
        "sglang.srt.model_executor.model_runner_components.spec_aux_hidden_state:"
        "SpecAuxHiddenStateConfig"
    ),
}
"""SGLang's class of what our code calls by these names, wherever it sets a field of it."""


class Use(NamedTuple):
    """A symbol of SGLang and the line that uses it; a path ``".name"`` is of any class."""

    line: int
    path: str

    def is_known(self) -> bool:
        if self.path in PUBLIC:
            return True
        if self.path.startswith("."):
            return any(path.endswith(self.path) for path in KNOWN)
        return any(path == self.path or path.startswith(f"{self.path}.") for path in KNOWN)


def imports(tree: ast.AST) -> Iterator[Use]:
    """Names imported from SGLang, and what is read or set of imported modules."""
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "sglang":
                    yield Use(node.lineno, f"{alias.name} (import its names instead)")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sglang":
            for alias in node.names:
                if is_module(f"{node.module}.{alias.name}"):
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                else:
                    yield Use(node.lineno, f"{node.module}:{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module is not None:
                yield Use(node.lineno, f"{module}:{node.attr}")


def is_module(name: str) -> bool:
    below = Path(*name.split(".")[1:])
    root = Path(sglang.__file__).parent
    return (root / below).is_dir() or (root / below).with_suffix(".py").is_file()


def replacements(tree: ast.AST) -> Iterator[Use]:
    """What is handed to `replace_function`; an argument that only runs can tell reads as "?"."""
    constants = string_constants(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) == "replace_function":
            module, attribute = (text_of(argument, constants) for argument in node.args[:2])
            yield Use(node.lineno, f"{module}:{attribute}")


def rooms_required(tree: ast.AST) -> Iterator[str]:
    constants = string_constants(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ASKING and node.args:
            yield text_of(node.args[0], constants)


def called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def string_constants(tree: ast.AST) -> dict[str, str]:
    """Names bound to one string, wherever in a file; none that is bound to several."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            for target in node.targets:
                if isinstance(target, ast.Name) and isinstance(node.value.value, str):
                    found.setdefault(target.id, set()).add(node.value.value)
    return {name: values.pop() for name, values in found.items() if len(values) == 1}


def text_of(node: ast.AST, constants: dict[str, str]) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Name):
        return constants.get(node.id, "?")
    if isinstance(node, ast.FormattedValue):
        return text_of(node.value, constants)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part, constants) for part in node.values)
    return "?"


def fields_set(tree: ast.AST) -> Iterator[Use]:
    """Attributes set on SGLang's objects; ours begin with ``specvlm``.

    A function outside a class that has a ``self`` stands in for a method of SGLang's.
    """
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    in_class = {id(node) for one in classes for node in ast.walk(one)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or isinstance(node.ctx, ast.Load):
            continue
        held = node.value
        name = held.attr if isinstance(held, ast.Attribute) else getattr(held, "id", "")
        if node.attr.startswith("specvlm"):
            continue
        if name in OWNERS:
            yield Use(node.lineno, f"{OWNERS[name]}.{node.attr}")
        elif name == "self" and id(node) not in in_class:
            yield Use(node.lineno, f".{node.attr}")


def parsed(file: Path) -> ast.AST:
    return ast.parse(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("find", [imports, replacements, fields_set])
def test_all_that_our_files_use_is_in_the_contract(find: object) -> None:
    assert callable(find)
    unknown = [
        f"{file.relative_to(PACKAGE.parent)}:{use.line}: {use.path} is not in host/symbols/"
        for file in FILES
        # These are the twins, below; their arguments are known when they run.
        if (find, file.parent.name, file.name) != (replacements, "kernels", "install.py")
        for use in find(parsed(file))
        if not use.is_known()
    ]
    assert not unknown, "\n" + "\n".join(unknown)


def test_the_kernels_room_has_each_twin_with_its_own_parameters() -> None:
    twins = {
        f"{twin.module}:{twin.attribute}": ()
        if twin.may_be_missing
        else tuple(inspect.signature(twin.function).parameters)
        for twin in TWINS
    }
    room = {symbol.path: symbol.parameters for symbol in contract.rooms()["kernels"]}
    assert {path: parameters for path, parameters in room.items() if path in twins} == twins


def test_every_room_is_required_where_it_is_used_and_no_other_is() -> None:
    required = {room for file in FILES for room in rooms_required(parsed(file))}
    assert required == set(contract.rooms())


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("from sglang.srt.utils import gone", "sglang.srt.utils:gone"),
        ("def f():\n    from sglang.srt.utils import gone as here", "sglang.srt.utils:gone"),
        ("import sglang.srt.utils", "sglang.srt.utils (import its names instead)"),
        (
            "from sglang.srt.managers import mm_utils as held\nheld.gone = 3",
            "sglang.srt.managers.mm_utils:gone",
        ),
    ],
)
def test_an_import_that_is_not_in_the_contract_is_found(source: str, path: str) -> None:
    found = list(imports(ast.parse(source)))
    assert [use.path for use in found] == [path]
    assert not found[0].is_known()


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("replace_function('sglang.a', 'B.c', make)", "sglang.a:B.c"),
        ("M = 'sglang.a'\nK = 'B'\npatching.replace_function(M, f'{K}.c', make)", "sglang.a:B.c"),
        ("M = 'sglang.a'\nM = 'sglang.b'\nreplace_function(M, 'c', make)", "?:c"),
        ("replace_function(chosen(), 'c', make)", "?:c"),
    ],
)
def test_a_replacement_that_is_not_in_the_contract_is_found(source: str, path: str) -> None:
    found = list(replacements(ast.parse(source)))
    assert [use.path for use in found] == [path]
    assert not found[0].is_known()


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("req.gone = 1", f"{SCHEDULE}:Req.gone"),
        ("view.gone += 1", f"{SCHEDULE}:ScheduleBatch.gone"),
        ("self.batch.gone, x = 1, 2", f"{SCHEDULE}:ScheduleBatch.gone"),
        ("del server_args.gone", "sglang.srt.server_args:ServerArgs.gone"),
        ("def hook(self):\n    self.gone: int = 1", ".gone"),
    ],
)
def test_a_field_that_is_not_in_the_contract_is_found(source: str, path: str) -> None:
    found = list(fields_set(ast.parse(source)))
    assert [use.path for use in found] == [path]
    assert not found[0].is_known()


@pytest.mark.parametrize(
    "source", ["req.specvlm_rows = 1", "x = req.gone", "class C:\n    def f(self): self.gone = 1"]
)
def test_our_own_attributes_and_what_is_only_read_are_left_alone(source: str) -> None:
    assert list(fields_set(ast.parse(source))) == []
