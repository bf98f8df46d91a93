"""What a stage of a run depends on: settings and code, found in the source of a config file.

The slice of a stage, a method of ``Config``, is what it reaches of the file, and the fields that
this reads. What cannot be followed (the configuration handed on whole, or looked into by name)
counts as everything. The library's defaults are followed, but only the user's code is compared.
"""

import ast
import functools
import hashlib
import inspect
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp

from smdp_jax.experiment.definition import Experiment
from smdp_jax.experiment.fields import as_json


@dataclass(frozen=True)
class Slice:
    """Settings by name, and digests of pieces of code by name."""

    settings: Mapping[str, Any]
    code: Mapping[str, str]

    def changes(self, other: "Slice") -> list[str]:
        """Say in what another slice of the same stage differs."""
        old, new = self.settings, other.settings
        common = [name for name in new if name in old]
        changed = [f"{n} was {old[n]!r}, now {new[n]!r}" for n in common if old[n] != new[n]]
        names = sorted(self.code.keys() | other.code.keys())
        code = [n.lstrip(".") for n in names if self.code.get(n) != other.code.get(n)]
        if code or (old.keys() != new.keys() and not changed):
            changed.append(f"the code of {', '.join(code or ['the experiment'])} has changed")
        return changed

    def as_json(self) -> dict[str, Any]:
        """Return JSON values; ``Slice(**values)`` reads them."""
        return {"settings": dict(self.settings), "code": dict(self.code)}


METHODS = {
    "simulate": ("simulate",),
    "train": ("simulate", "fit", "model"),
    "sample": ("simulate", "sample", "sde", "model"),
    "evaluate": ("simulate", "evaluate"),
    "report": ("simulate", "figures"),
}
"""What the stages of a run call, and those that made the paths before them."""


def slice_of_stage(source: str, config: Experiment, stage: str, **inputs: str) -> Slice:
    """Find what a stage depends on, in the source of its file; digests of its input are code."""
    found = _Names(ast.parse(source), type(config))
    pending, seen = [*(f".{name}" for name in METHODS[stage]), ".seed", *found.always], set[str]()
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            for node in found.nodes(name):
                pending += found.used_by(node)
    settings = as_json(config)
    if _ALL in seen:
        seen |= found.own.keys() - {"PRESETS"} | {f".{name}" for name in settings}
    used = {name: value for name, value in settings.items() if f".{name}" in seen}
    used["precision"] = str(jnp.result_type(float))
    # The default of a field is no code: its value is a setting.
    pieces = (seen & found.own.keys()) - {f".{name}" for name in settings}
    return Slice(used, {name: _digest(found.own[name]) for name in sorted(pieces)} | inputs)


_ALL = "*"


@dataclass
class _Names:
    """Definitions by name, of the file and of the library's classes; members begin with a dot."""

    tree: ast.Module
    kind: type[Experiment]
    own: dict[str, list[ast.AST]] = field(default_factory=dict)
    library: dict[str, list[ast.AST]] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    always: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        bases = {base.__name__ for base in self.kind.__mro__}
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef) and node.name in bases:
                self._add_members(node, self.own)
            else:
                self._add(node)
        for base in self.kind.__mro__:
            if issubclass(base, Experiment) and base.__module__.startswith("smdp_jax."):
                self._add_members(_source_of(base), self.library)

    def nodes(self, name: str) -> list[ast.AST]:
        own = self.own.get(name, [])
        if own and "super(" not in "".join(map(ast.unparse, own)):
            return own  # a default that is replaced is reached only by super()
        return [*own, *self.library.get(name, ())]

    def used_by(self, node: ast.AST) -> Iterator[str]:
        """Find the names that a piece of code reaches."""
        parents = {id(child): n for n in ast.walk(node) for child in ast.iter_child_nodes(n)}
        for part in ast.walk(node):
            parent = parents.get(id(part))
            followed = isinstance(parent, ast.Attribute) and not parent.attr.startswith("__")
            if isinstance(part, ast.Name):
                yield _ALL if part.id == "self" and not followed else part.id
            elif isinstance(part, ast.Attribute) and not self._of_module(part):
                yield _ALL if part.attr == "config" and not followed else f".{part.attr}"

    def _of_module(self, node: ast.expr) -> bool:
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name) and node.id in self.modules

    def _add_members(self, node: ast.AST, to: dict[str, list[ast.AST]]) -> None:
        for part in getattr(node, "body", ()):
            for name in _defined(part):
                to.setdefault(f".{name}", []).append(part)
                self.always += [f".{name}"] if name.startswith("__") else []

    def _add(self, node: ast.stmt) -> None:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:  # each on its own, whatever else its line imports
                name = (alias.asname or alias.name).split(".")[0]
                self.own.setdefault(name, []).append(_only(node, alias))
                self.modules.add(name)
            return
        names = _defined(node)
        if not names and not _is_text(node):
            # What runs when the file is loaded concerns all that is in it.
            names = [ast.unparse(node).splitlines()[0]]
            self.always += names
        for name in names:
            self.own.setdefault(name, []).append(node)


@functools.cache
def _source_of(kind: type[Experiment]) -> ast.stmt:
    return ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]


def _only(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> ast.stmt:
    if isinstance(node, ast.Import):
        return ast.Import([alias])
    return ast.ImportFrom(node.module, [alias], node.level)


def _defined(node: ast.AST) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
    return [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]


def _digest(nodes: Iterable[ast.AST]) -> str:
    """Digest code; comments, docstrings and layout do not count."""
    return hashlib.sha256("\n".join(map(_plain, nodes)).encode()).hexdigest()[:16]


def _plain(node: ast.AST) -> str:
    node = ast.parse(ast.unparse(node))
    for part in ast.walk(node):
        body = getattr(part, "body", None)
        if isinstance(body, list):
            lines = [line for line in body if not _is_text(line)]
            part.body = lines or [ast.Pass()]  # pyright: ignore[reportAttributeAccessIssue] some nodes have no body
    return ast.unparse(node)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
