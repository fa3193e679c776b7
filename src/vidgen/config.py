"""Typed configurations: frozen dataclasses to and from JSON, with overrides by field name.

A configuration is a tree of frozen dataclasses that may hold other dataclasses. Values are checked by
pydantic against the annotations; unknown fields are refused with the nearest known one.

What a class may add: ``read_older(values)``, a class method that turns the plain values of a file, of whatever
age, into those of today's fields; and a field with the metadata ``{"decides": NAME}``, on whose value the class
of the field ``NAME`` depends: overriding it with another value sets ``NAME`` to None first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from vidgen.errors import InvalidArgumentError, UnknownNameError

__all__ = ["from_dict", "override", "read_json", "to_dict", "write_json"]

T = TypeVar("T")

_MOST_NESTED = 100
"""How deep a file of JSON may be nested: whoever walks through it does so by recursion."""


@functools.cache
def _adapter(kind: Any) -> Any:
    return TypeAdapter(kind)


def to_dict(config: Any) -> dict[str, Any]:
    """Return ``config`` (a dataclass instance) as plain JSON values.

    A field annotated ``Any`` that holds a dataclass (a recipe's strategy configuration) is dumped by its
    own class, so that nothing is lost.
    """
    out: dict[str, Any] = {}
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and (hints[field.name] is Any or _plain(type(value))):
            out[field.name] = to_dict(value)
        elif _of_dataclasses(hints[field.name]) is not None:
            out[field.name] = {key: to_dict(each) for key, each in value.items()}
        else:
            out[field.name] = _adapter(hints[field.name]).dump_python(value, mode="json")
    return out


def _plain(kind: Any) -> bool:
    """Whether ``kind`` is a dataclass without a serialisation of its own."""
    return dataclasses.is_dataclass(kind) and not hasattr(kind, "__get_pydantic_core_schema__")


def _of_dataclasses(kind: Any) -> Any:
    """Return the dataclass that a mapping by names holds (``dict[str, StageConfig]``), or None."""
    arguments = get_args(kind)
    return arguments[1] if get_origin(kind) is dict and len(arguments) == 2 and _plain(arguments[1]) else None


def from_dict(kind: type[T], data: Mapping[str, Any], *, where: str = "") -> T:
    """Build the dataclass ``kind`` from plain values, checked against its annotations.

    Raises:
        UnknownNameError: a key is no field of ``kind``.
        InvalidArgumentError: a value does not fit its field.
    """
    hints = get_type_hints(kind)
    older = getattr(kind, "read_older", None)
    data = data if older is None else older(data)
    names = [field.name for field in dataclasses.fields(kind) if field.init]  # type: ignore[arg-type]
    values = {}
    for key, value in data.items():
        if key not in names:
            raise UnknownNameError(f"field of {kind.__name__}", f"{where}{key}", names)
        inner, each = _dataclass_of(hints[key]), _of_dataclasses(hints[key])
        if inner is not None and isinstance(value, Mapping):
            values[key] = from_dict(inner, value, where=f"{where}{key}.")
        elif each is not None and isinstance(value, Mapping):
            values[key] = {
                name: from_dict(each, own, where=f"{where}{key}.{name}.") for name, own in value.items()
            }
        else:
            values[key] = _checked(hints[key], value, f"{where}{key}")
    try:
        return kind(**values)
    except TypeError as error:
        raise InvalidArgumentError(f"{kind.__name__} cannot be built: {error}") from error


def _dataclass_of(hint: Any) -> Any:
    """Return the plain dataclass that ``hint`` is, or is where it is not None; else None."""
    kinds = [kind for kind in get_args(hint) or [hint] if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and _plain(kinds[0]) else None


def _checked(kind: Any, value: Any, name: str) -> Any:
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        label = getattr(kind, "__name__", str(kind))
        raise InvalidArgumentError(
            f"field {name!r} was given {value!r}; expected {label}: {problem}."
        ) from error


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield ``(dotted name, annotation, value)`` for every leaf of ``config``."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if _plain(type(value)):
            yield from fields_of(value, f"{prefix}{field.name}.")
        elif _of_dataclasses(hints[field.name]) is not None:
            for key, each in value.items():
                yield from fields_of(each, f"{prefix}{field.name}.{key}.")
        else:
            yield f"{prefix}{field.name}", hints[field.name], value


def override(config: T, assignments: Iterable[str]) -> T:
    """Return ``config`` with ``NAME=VALUE`` assignments applied together.

    Fields that are checked against each other may so be set in any order. ``NAME`` is the dotted path of a
    leaf of ``config`` (``model.net.width``), or enough of its parts in their order, the last one among them
    (``width``, ``model.width``); ``VALUE`` is read by the field's type, then as JSON. Of several assignments to
    one field the last one counts. A field that decides of which class another is is set before all others.

    Raises:
        UnknownNameError: no field is called ``NAME``.
        InvalidArgumentError: ``=`` is missing, ``NAME`` is ambiguous, ``VALUE`` does not fit, or the values
            contradict each other.
    """
    given = list(assignments)
    first = [assignment for assignment in given if _decides(config, assignment)]
    rest = [assignment for assignment in given if assignment not in first]
    return _assigned(_assigned(config, first), rest)


def _assigned(config: T, assignments: Iterable[str]) -> T:
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise InvalidArgumentError(
                f"{assignment!r} assigns nothing; expected NAME=VALUE, such as width=64."
            )
        path, kind = _find(config, name.strip())
        *parents, leaf = path.split(".")
        inner = changes
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = _parsed(kind, text.strip(), path)
    return _replaced(config, changes)


def _decides(config: Any, assignment: str) -> bool:
    """Say whether ``assignment`` is to a field that decides of which class another is."""
    try:
        *parents, leaf = _find(config, assignment.partition("=")[0].strip())[0].split(".")
    except (InvalidArgumentError, UnknownNameError):  # a name of the class to come, perhaps
        return False
    if parents and parents[0] in _mappings(config):
        return False
    for parent in parents:
        config = getattr(config, parent)
    return any("decides" in field.metadata for field in dataclasses.fields(config) if field.name == leaf)


def _find(config: Any, name: str) -> tuple[str, Any]:
    leaves = {path: kind for path, kind, _ in fields_of(config)}
    leaves |= _leaves_of_entry(config, name)
    if name in leaves:
        return name, leaves[name]
    mappings = tuple(f"{field}." for field in _mappings(config))
    matches = [path for path in leaves if path.endswith(f".{name}") and not path.startswith(mappings)]
    plain = [path for path in leaves if not path.startswith(mappings)]
    matches = matches or [path for path in plain if _abbreviates(name, path)]
    if len(matches) > 1:
        raise InvalidArgumentError(f"field {name!r} is ambiguous; write one of {', '.join(sorted(matches))}.")
    if not matches:
        known = {*leaves, *(path.rpartition(".")[2] for path in leaves)} if "." not in name else leaves
        raise UnknownNameError("field", name, known)
    return matches[0], leaves[matches[0]]


def _mappings(config: Any) -> dict[str, Any]:
    """Return the fields of ``config`` that hold dataclasses by name, and which dataclass."""
    found = {name: _of_dataclasses(hint) for name, hint in get_type_hints(type(config)).items()}
    return {name: kind for name, kind in found.items() if kind is not None}


def _leaves_of_entry(config: Any, name: str) -> dict[str, Any]:
    """Return the leaves of the entry that ``name`` (``stages.NAME.steps``) speaks of, there or not."""
    field, _, rest = name.partition(".")
    kind, key = _mappings(config).get(field), rest.rpartition(".")[0]
    if kind is None or not key:
        return {}
    return {f"{field}.{key}.{path}": hint for path, hint in get_type_hints(kind).items()}


def _abbreviates(name: str, path: str) -> bool:
    """Say whether the parts of ``name`` occur in ``path`` in their order, and both end with the same one."""
    parts = iter(path.split("."))
    return all(part in parts for part in name.split(".")) and name.split(".")[-1] == path.split(".")[-1]


def _parsed(kind: Any, text: str, name: str) -> Any:
    candidates: list[Any] = [text]
    with contextlib.suppress(json.JSONDecodeError):
        # A list or mapping is meant as such; a number may still be meant as text.
        value = json.loads(text)
        candidates.insert(0 if isinstance(value, list | dict) else 1, value)
    if text.lower() in {"none", "null"}:
        candidates.insert(0, None)
    first: InvalidArgumentError | None = None
    for candidate in candidates:
        try:
            return _checked(kind, candidate, name)
        except InvalidArgumentError as error:
            first = first or error
    assert first is not None  # there was at least one candidate
    raise first


def _replaced(config: T, changes: Mapping[str, Any]) -> T:
    """Replace fields of ``config``, at once: whoever checks them sees none of the old ones in between."""
    values: dict[str, Any] = {}
    decides = {field.name: field.metadata.get("decides") for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    for name, change in changes.items():
        old = getattr(config, name)
        decided = decides[name]
        if decided is not None and change != old:
            values[decided] = None
        if _plain(type(old)):
            values[name] = _replaced(old, change)
        elif name in _mappings(config) and isinstance(change, Mapping):
            kind = _mappings(config)[name]
            values[name] = old | {key: _replaced(old.get(key, kind()), own) for key, own in change.items()}
        else:
            values[name] = change
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as indented JSON to ``path``: to a temporary name beside it, then renamed.

    Raises:
        OSError: it cannot be written; nothing half-written stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _nesting(data: Any) -> int:
    """Return how deep lists and mappings lie in each other."""
    depth, level = 0, [data]
    while level:
        inner = (node.values() if isinstance(node, dict) else node for node in level if node)
        level = [child for nodes in inner for child in nodes if isinstance(child, dict | list)]
        depth += 1
    return depth


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object at ``path``.

    Raises:
        InvalidArgumentError: the file is not JSON, not an object, or nested endlessly.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        nested = _nesting(data)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError, too
        raise InvalidArgumentError(f"{path} is not valid JSON: {error}.") from error
    if nested > _MOST_NESTED:
        raise InvalidArgumentError(
            f"{path} is nested {nested} deep; expected {_MOST_NESTED} at most. It is no file of vidgen's."
        )
    if not isinstance(data, dict):
        raise InvalidArgumentError(f"{path} holds {type(data).__name__}; expected a JSON object.")
    return data
