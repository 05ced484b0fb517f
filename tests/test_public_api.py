"""The names that `import skipgpt` promises."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import skipgpt


def _type_checking_imports() -> dict[str, str]:
    """Name by name, the module that type checkers are told of."""
    tree = ast.parse(Path(skipgpt.__file__).read_text(encoding="utf-8"))
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, "only `as` the same name is re-exported"
            found[alias.name] = node.module
    return found


@pytest.mark.parametrize("name", skipgpt.__all__)
def test_every_public_name_imports_and_is_documented(name: str) -> None:
    value = getattr(skipgpt, name)
    assert value.__name__ == name
    own = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
    assert own
    # A dataclass without a docstring gets its signature as one.
    assert not own.startswith(f"{name}(")


@pytest.mark.parametrize("name", skipgpt.__all__)
def test_type_checkers_see_the_same_object(name: str) -> None:
    module = importlib.import_module(_type_checking_imports()[name])
    assert getattr(module, name) is getattr(skipgpt, name)


def test_the_two_lists_agree_and_are_sorted() -> None:
    assert set(_type_checking_imports()) == set(skipgpt.__all__)
    assert len(set(skipgpt.__all__)) == len(skipgpt.__all__)
    assert sorted(skipgpt.__all__) == skipgpt.__all__


@pytest.mark.parametrize(
    "name", [n for n in skipgpt.__all__ if not n.endswith(("Config", "Error"))]
)
def test_every_parameter_of_a_public_function_is_typed(name: str) -> None:
    signature = inspect.signature(getattr(skipgpt, name))
    assert all(p.annotation is not p.empty for p in signature.parameters.values())
    assert signature.return_annotation is not signature.empty


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'skipgpt' has no attribute 'trian'"):
        _ = skipgpt.trian


def test_from_import_star_gives_exactly_the_public_names() -> None:
    scope: dict[str, object] = {}
    exec("from skipgpt import *", scope)
    assert set(scope) - {"__builtins__"} == set(skipgpt.__all__)


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert skipgpt.__version__ == version("skipgpt")
