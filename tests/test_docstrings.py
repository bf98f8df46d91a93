"""Public objects are documented as numpydoc wants it, and public functions are annotated.

Public is what the ``__init__`` of the package or of one of its rooms exports.
"""

import ast
import importlib
import inspect
import itertools
import pkgutil
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import flax.linen as nn
import pytest
from numpydoc.docscrape import get_doc_object
from numpydoc.validate import Validator, validate

import smdp_jax

CODES = {
    "GL06",  # unknown section
    "GL07",  # sections out of order
    "GL08",  # no docstring
    "SS01",  # no summary
    "SS03",  # summary without a full stop
    "SS06",  # summary longer than a line
    "PR01",  # parameter not documented
    "PR02",  # documented parameter that does not exist
    "PR03",  # parameters in another order than in the signature
    "PR07",  # parameter without a description
    "PR10",  # "name: type" for "name : type"
    "RT01",  # no Returns
    "RT03",  # Returns without a description
    "YD01",  # no Yields
}


class PackageValidator(Validator):
    """numpydoc's rules; fields of a record may stand under Attributes, or have a string below."""

    def __init__(self, obj_name: Any) -> None:
        super().__init__(get_doc_object(obj_name, config={"show_class_members": False}))

    @property
    def signature_parameters(self) -> tuple[str, ...]:
        if getattr(self.obj, "_is_protocol", False):
            return ()  # a protocol is never called: its signature is (*args, **kwargs)
        parameters = super().signature_parameters
        if inspect.isclass(self.obj) and issubclass(self.obj, nn.Module):
            return tuple(name for name in parameters if name not in ("parent", "name"))
        return parameters

    @property
    def doc_all_parameters(self) -> dict[str, Any]:
        documented = super().doc_all_parameters
        if inspect.isclass(self.obj):
            fields = self._doc_parameters(["Attributes"]) | told_below(self.obj)
            accepted = set(self.signature_parameters) - set(documented)
            documented |= {name: fields[name] for name in fields if name in accepted}
        return documented


def told_below(cls: type) -> dict[str, Any]:
    """Fields of a class that a string follows."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    return {
        field.target.id: ("", said.value.value)
        for field, said in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(said, ast.Expr)
        and isinstance(said.value, ast.Constant)
    }


def public_modules() -> Iterator[ModuleType]:
    yield smdp_jax
    for info in pkgutil.walk_packages(smdp_jax.__path__, "smdp_jax."):
        if info.ispkg:
            yield importlib.import_module(info.name)


def public_members(module: ModuleType) -> Iterator[Any]:
    """Classes and functions a module offers: those of ``__all__``, or its own without it."""
    names = getattr(module, "__all__", None)
    package = "smdp_jax" if names else module.__name__
    for name in names or [n for n in vars(module) if not n.startswith("_")]:
        member = inspect.unwrap(getattr(module, name))
        if not (inspect.isclass(member) or inspect.isfunction(member)):
            continue
        if f"{member.__module__}.".startswith(f"{package}."):
            yield member


def public_methods(cls: type) -> Iterator[Any]:
    """Methods and properties that a class adds; those of a base keep the base's contract."""
    for name in vars(cls):
        if name.startswith("_") or any(hasattr(base, name) for base in cls.__mro__[1:]):
            continue
        member = getattr(cls, name)
        function = member.fget if isinstance(member, property) else member
        function = inspect.unwrap(getattr(function, "__func__", function))
        if inspect.isfunction(function) and function.__qualname__ == f"{cls.__qualname__}.{name}":
            yield member if isinstance(member, property) else function


def public_objects() -> dict[str, Any]:
    found = {}
    for module in public_modules():
        for member in public_members(module):
            for part in (member, *(public_methods(member) if inspect.isclass(member) else ())):
                named = part.fget if isinstance(part, property) else part
                found[f"{named.__module__}.{named.__qualname__}"] = part
    return found


OBJECTS = public_objects()
FUNCTIONS = {name: obj for name, obj in OBJECTS.items() if inspect.isfunction(obj)}


def raises_itself(function: Any) -> bool:
    """Whether a function's own body, inner functions apart, raises an error."""
    stack = list(ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Raise):
            return True
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            stack.extend(ast.iter_child_nodes(node))
    return False


@pytest.mark.parametrize("name", OBJECTS)
def test_docstring(name):
    report = validate(OBJECTS[name], validator_cls=PackageValidator)
    errors = [f"{code}: {text}" for code, text in report["errors"] if code in CODES]
    assert not errors, f"{name}: {errors}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_raises_section(name):
    documented = get_doc_object(FUNCTIONS[name])["Raises"]
    assert documented or not raises_itself(FUNCTIONS[name]), f"{name}: no Raises section"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_annotations(name):
    signature = inspect.signature(FUNCTIONS[name])
    missing = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls")
    ]
    if signature.return_annotation is signature.empty:
        missing.append("return")
    assert not missing, f"{name}: without a type: {missing}"
