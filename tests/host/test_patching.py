"""Replacing functions of a package that other modules have imported already."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from specvlm_sglang.host.patching import original_of, replace_function
from tests.support.hooks import unhooked

SOURCE = """
def answer(question):
    return "plain " + question

class Desk:
    def answer(self, question):
        return f"{self.name}: plain {question}"
    @staticmethod
    def sign(text):
        return f"<{text}>"
    @classmethod
    def kind(cls):
        return cls.__name__
    @property
    def size(self):
        return "small"
    @size.setter
    def size(self, value):
        raise ValueError(value)
    class Drawer:
        def open(self):
            return "plain"
"""


@pytest.fixture
def host() -> Iterator[ModuleType]:
    """A package with a function, a class, and two modules that imported the function."""
    names = ("specvlm_test_host", "specvlm_test_host_user", "specvlm_test_host_renaming_user")
    host, user, renaming = (ModuleType(name) for name in names)
    exec(SOURCE, vars(host))
    user.answer = host.answer
    renaming.reply = host.answer
    # A module may be replaced by any object, and may be gone.
    sys.modules.update(dict(zip(names, (host, user, renaming), strict=True)))
    sys.modules["specvlm_test_no_module"] = object()
    yield host
    for name in (*names, "specvlm_test_no_module"):
        del sys.modules[name]


def louder(original: Callable[..., str]) -> Callable[..., str]:
    def answer(*args: Any) -> str:
        return original(*args).upper()

    return answer


def polite(original: Callable[..., str]) -> Callable[..., str]:
    return ending(original, end=", please")


def ending(original: Callable[..., str], *, end: str) -> Callable[..., str]:
    def answer(*args: Any) -> str:
        return original(*args) + end

    return answer


def everywhere(host: ModuleType) -> list[str]:
    return [
        host.answer("a"),
        sys.modules["specvlm_test_host_user"].answer("b"),
        sys.modules["specvlm_test_host_renaming_user"].reply("c"),
    ]


def test_a_function_is_replaced_wherever_it_was_imported_to_under_any_name(
    host: ModuleType,
) -> None:
    replace_function(host.__name__, "answer", louder)
    assert everywhere(host) == ["PLAIN A", "PLAIN B", "PLAIN C"]


def test_the_same_hook_wraps_once(host: ModuleType) -> None:
    plain = host.answer
    replace_function(host.__name__, "answer", louder)
    first = host.answer
    replace_function(host.__name__, "answer", louder)
    assert host.answer is first
    # Nor again when another hook lies between.
    replace_function(host.__name__, "answer", polite)
    second = host.answer
    replace_function(host.__name__, "answer", louder)
    assert host.answer is second
    assert original_of(second) is original_of(first) is original_of(plain) is plain


def test_another_hook_wraps_what_the_first_one_made_everywhere(host: ModuleType) -> None:
    replace_function(host.__name__, "answer", louder)
    replace_function(host.__name__, "answer", polite)
    assert everywhere(host) == ["PLAIN A, please", "PLAIN B, please", "PLAIN C, please"]


def test_a_hook_with_arguments_is_the_same_hook_whatever_they_are(host: ModuleType) -> None:
    replace_function(host.__name__, "answer", functools.partial(ending, end="!"))
    replace_function(host.__name__, "answer", functools.partial(ending, end="?"))
    assert host.answer("a") == "plain a!"


def test_a_name_that_is_none_is_refused_before_it_is_replaced_in_every_module(
    host: ModuleType,
) -> None:
    host.absent = None
    with pytest.raises(TypeError, match=r"specvlm_test_host\.absent is None"):
        replace_function(host.__name__, "absent", louder)


@pytest.mark.parametrize(
    ("attribute", "call", "expected"),
    [
        ("Desk.answer", lambda desk: desk.answer("d"), "FRONT: PLAIN D"),
        ("Desk.Drawer.open", lambda desk: desk.Drawer().open(), "PLAIN"),
    ],
)
def test_a_method_is_replaced_for_instances_that_exist_already(
    host: ModuleType, attribute: str, call: Callable[[Any], str], expected: str
) -> None:
    desk = host.Desk()
    desk.name = "front"
    replace_function(host.__name__, attribute, louder)
    assert call(desk) == expected


@pytest.mark.parametrize(
    ("module", "attribute", "error"),
    [
        ("specvlm_test_host", "missing", AttributeError),
        ("specvlm_test_host", "Missing.method", AttributeError),
        ("specvlm_test_host_that_is_not_there", "answer", ModuleNotFoundError),
    ],
)
def test_a_missing_target_is_an_error_and_changes_nothing(
    host: ModuleType, module: str, attribute: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        replace_function(module, attribute, louder)
    assert everywhere(host) == ["plain a", "plain b", "plain c"]


def test_a_hook_that_cannot_be_made_changes_nothing(host: ModuleType) -> None:
    def broken(original: Callable[..., str]) -> Callable[..., str]:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        replace_function(host.__name__, "answer", broken)
    assert everywhere(host) == ["plain a", "plain b", "plain c"]


def test_static_and_class_methods_stay_what_they_are(host: ModuleType) -> None:
    def twice(original: Callable[..., str]) -> Callable[..., str]:
        def call(*args: Any) -> str:
            return original(*args) * 2

        return call

    for _ in range(2):
        replace_function(host.__name__, "Desk.sign", twice)
        replace_function(host.__name__, "Desk.kind", twice)
    for owner in (host.Desk, host.Desk()):
        assert owner.sign("x") == "<x><x>"
        assert owner.kind() == "DeskDesk"
    assert type("Table", (host.Desk,), {}).kind() == "TableTable"


def test_a_property_stays_one_and_keeps_what_sets_it(host: ModuleType) -> None:
    desk = host.Desk()
    for _ in range(2):
        replace_function(host.__name__, "Desk.size", polite)
    assert desk.size == "small, please"
    with pytest.raises(ValueError, match="large"):
        desk.size = "large"
    with unhooked((host.__name__, "Desk.size")):
        assert desk.size == "small"
    assert desk.size == "small, please"


def test_the_test_helper_takes_hooks_out_and_puts_them_back(host: ModuleType) -> None:
    replace_function(host.__name__, "answer", louder)
    replace_function(host.__name__, "Desk.sign", louder)
    with unhooked((host.__name__, "answer"), (host.__name__, "Desk.sign")):
        assert everywhere(host) == ["plain a", "plain b", "plain c"]
        replace_function(host.__name__, "answer", polite)
        assert everywhere(host)[0] == "plain a, please"
        assert host.Desk.sign("y") == "<y>"
    assert everywhere(host) == ["PLAIN A", "PLAIN B", "PLAIN C"]
    assert host.Desk.sign("y") == "<Y>"
