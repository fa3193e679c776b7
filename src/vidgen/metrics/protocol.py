"""How a number was made, as plain data with a fingerprint: what may be compared with what."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from vidgen.errors import InvalidArgumentError

__all__ = ["Protocol", "ProtocolMismatchError", "check_comparable", "differing"]

_SHOWN = 60
"""Characters of a differing value that an error quotes."""


class ProtocolMismatchError(InvalidArgumentError):
    """Two numbers were made in different ways and cannot be compared; the differing fields are named."""


class Protocol:
    """All that decides a metric's value besides the videos that are judged. Immutable.

    Two protocols are equal where their fields are, in whatever order these were given and in whatever
    process. Tuples count as lists, and 8.0 as 8.

    Args:
        metric: name of the metric, extractor included, such as ``"fvd_shapes_v1"``.
        fields: plain JSON values, nested as needed: ``extractor`` (the ``fingerprint()`` of a
            ``FeatureExtractor``), ``frames``, ``size``, ``preprocessing``, ``fps`` or the videos' own
            ``rates``, ``stride``, ``real`` (digest of the real videos), ``splits``, and the number of videos
            where it matters.

    Raises:
        InvalidArgumentError: a value is no JSON (an object, NaN or infinity, a key that is no text).
    """

    __slots__ = ("_text",)
    _text: str

    def __init__(self, metric: str, **fields: Any) -> None:
        if not isinstance(metric, str) or not metric:
            raise InvalidArgumentError(
                f"a protocol's metric is {metric!r}; expected its name with the extractor's, such as "
                "'fvd_shapes_v1'."
            )
        values = _plain({"metric": metric, **fields}, "")
        object.__setattr__(self, "_text", json.dumps(values, sort_keys=True, separators=(",", ":")))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a protocol never changes; replace({name}=...) gives another one")

    @property
    def metric(self) -> str:
        """The metric's name."""
        return str(self.to_json()["metric"])

    @property
    def fingerprint(self) -> str:
        """Digest of all fields: 32 hexadecimal digits, the same in every process."""
        return hashlib.blake2b(self._text.encode(), digest_size=16).hexdigest()

    def __getitem__(self, name: str) -> Any:
        """Return a field; KeyError where there is none of this name."""
        return self.to_json()[name]

    def replace(self, **fields: Any) -> Protocol:
        """Return a protocol in which ``fields`` are added, or take the place of those of the same name."""
        return Protocol(**{**self.to_json(), **fields})

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values, ``metric`` among them; a copy."""
        fields: dict[str, Any] = json.loads(self._text)
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Protocol:
        """Build the protocol that ``to_json`` described.

        Raises:
            InvalidArgumentError: ``metric`` is missing, or a value is no JSON.
        """
        if not isinstance(fields, Mapping) or "metric" not in fields:
            raise InvalidArgumentError(
                f"{fields!r} describes no protocol; expected a JSON object with 'metric' and what it was "
                "measured with."
            )
        return cls(**_plain(fields, ""))

    def differences(self, other: Protocol) -> dict[str, tuple[Any, Any]]:
        """Return dotted field names with both values, where these differ; a missing one is ``"(none)"``."""
        mine, theirs = dict(_leaves(self.to_json())), dict(_leaves(other.to_json()))
        return {
            name: (mine.get(name, "(none)"), theirs.get(name, "(none)"))
            for name in sorted(mine.keys() | theirs.keys())
            if name not in mine or name not in theirs or not _same(mine[name], theirs[name])
        }

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Protocol) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"Protocol({', '.join(f'{name}={value!r}' for name, value in self.to_json().items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Protocol.from_json, (self.to_json(),)


def check_comparable(a: Protocol, b: Protocol) -> None:
    """Refuse to compare numbers that were made in different ways.

    Raises:
        ProtocolMismatchError: the protocols' fingerprints differ; each differing field is named.
    """
    if a == b:
        return
    raise ProtocolMismatchError(
        f"scores of {a.metric} ({a.fingerprint[:8]}) and {b.metric} ({b.fingerprint[:8]}) cannot be compared, "
        f"since they were measured in different ways: {differing(a, b)}. Measure both in one way."
    )


def differing(a: Protocol, b: Protocol) -> str:
    """Return the fields that differ with the value of each, shortened, for messages."""
    return "; ".join(
        f"{name}: {_short(one)} against {_short(two)}" for name, (one, two) in a.differences(b).items()
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _same(a: Any, b: Any) -> bool:
    # As text: True is not 1, and a list may hold either.
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _plain(value: Any, where: str) -> Any:
    """``value`` as JSON in one form: lists, no integral floats, no foreign numbers."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and math.isfinite(value):
        number = float(value)
        # 8.0 and 8 frames a second are the same; above 2**53 a float names no single integer.
        return int(number) if number.is_integer() and abs(number) <= 2**53 else number
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(inner, f"{where}.{key}" if where else key) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(inner, f"{where}[{index}]") for index, inner in enumerate(value)]
    raise InvalidArgumentError(
        f"field {where or 'of a protocol'!r} is {value!r} ({type(value).__name__}); expected plain JSON: text, "
        "finite numbers, booleans, None, lists, and mappings with text keys."
    )
