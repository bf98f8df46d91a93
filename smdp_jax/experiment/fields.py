"""Fields of a configuration: kinds with bounds, and the way to JSON and back."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


class ExperimentError(Exception):
    """A config, a run directory or a file does not fit; the message says what to do."""


def check_returned(method: str, value: Any, kind: Any, said: str) -> None:
    """Check what a method of a configuration has returned."""
    if not isinstance(value, kind):
        raise ExperimentError(f"Config.{method} must return {said}, got {type(value).__name__}")


@dataclasses.dataclass(frozen=True)
class Bound:
    """What a number must be, in words and as a test."""

    said: str
    holds: Callable[[Any], bool]


Count = Annotated[int, Bound("from 1 to 2**31 - 1", lambda x: 1 <= x < 2**31)]
"""A number of something."""
Seed = Annotated[int, Bound("from 0 to 2**32 - 1", lambda x: 0 <= x < 2**32)]
"""Root of random numbers."""
Positive = Annotated[float, Bound("positive", lambda x: x > 0)]
"""A length, a rate, an amplitude."""
NotNegative = Annotated[float, Bound("at least 0", lambda x: x >= 0)]
"""The same, where 0 means none."""
Share = Annotated[float, Bound("at least 0 and less than 1", lambda x: 0 <= x < 1)]
"""A decay, a part of a whole."""


def as_json(config: Any) -> dict[str, Any]:
    """Return the fields of a configuration as JSON values."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ExperimentError(f"{name} must be finite, got {value}")
    try:
        return json.loads(json.dumps(fields, allow_nan=False))
    except (TypeError, ValueError):
        raise _not_json(config) from None


def from_json(kind: type[Any], fields: Mapping[str, Any]) -> Any:
    """Rebuild a configuration, and check what it holds."""
    if other := {f.name for f in dataclasses.fields(kind)} ^ set(fields):
        said = "the configuration has other fields than its class"
        raise ExperimentError(f"{said}: {', '.join(sorted(other))}")

    def frozen(value: Any) -> Any:
        return tuple(frozen(v) for v in value) if isinstance(value, list) else value

    config = kind(**{name: frozen(value) for name, value in fields.items()})
    check_types(config)
    return config


def check_fields(config: Any) -> None:
    """Check types and bounds of all fields, and that they survive the way through JSON."""
    fields = as_json(config)
    check_types(config)
    if from_json(type(config), fields) != config:
        raise _not_json(config)


def check_types(config: Any) -> None:
    """Check that fields are what they are declared as."""
    kind = type(config)
    try:
        plain, bounded = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        said = f"the annotations of {kind.__name__} must be names that its file knows"
        raise ExperimentError(f"{said}, got: {error}") from None
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), plain[field.name]
        shown = getattr(hint, "__name__", hint) if get_args(hint) == () else hint
        said = _beyond(value, bounded[field.name]) if _fits(value, hint) else shown
        if said:
            raise ExperimentError(f"{field.name} must be {said}, got {value!r}")


def _not_json(config: Any) -> ExperimentError:
    return ExperimentError(
        f"fields of {type(config).__name__} must be numbers, strings, bools, None or tuples of "
        "these, so that a run can be read back from config.json"
    )


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value has the type that a field is declared with; True for other types."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return value in parts
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is tuple and isinstance(value, tuple):
        return len(value) == len(_kinds(value, parts)) and all(
            map(_fits, value, _kinds(value, parts))
        )
    numbers = {int: (int,), float: (int, float)}
    if hint in numbers:
        return isinstance(value, numbers[hint]) and not isinstance(value, bool)
    known = kind is tuple or hint in (NoneType, bool, str)
    return not known or isinstance(value, kind or hint)


def _beyond(value: Any, hint: Any) -> str | None:
    """Say what a value of the right type must be, where it is beyond its bound."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        bounds = [part for part in parts[1:] if isinstance(part, Bound)]
        return next((b.said for b in bounds if not b.holds(value)), _beyond(value, parts[0]))
    if kind in (Union, UnionType):
        said = [_beyond(value, part) for part in parts if _fits(value, _plain(part))]
        return None if None in said else said[0]
    if kind is tuple:
        found = filter(None, map(_beyond, value, _kinds(value, parts)))
        return next((f"of numbers {said}" for said in found), None)
    return None


def _kinds(value: tuple[Any, ...], parts: tuple[Any, ...]) -> tuple[Any, ...]:
    return parts[:1] * len(value) if parts[1:] == (...,) else parts


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint
