"""The noise prior: how the noise of one video's frames hangs together.

The interface, the registry by ``kind``, and the plain-data form that configs and checkpoints
hold.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from inspect import isabstract
from typing import Any, ClassVar, get_args, get_type_hints

import numpy as np
import torch
from jaxtyping import Float, Float64
from pydantic_core import core_schema
from torch import Tensor

from vidgen import plugins
from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.noise.keys import NoiseKey

__all__ = ["NoisePrior", "check_request"]


class NoisePrior(ABC):
    """Gaussian noise with unit variance in each frame and a covariance over frames.

    The noise of a frame depends on the key and the frame's absolute index alone, so any subset
    of frames in any order gives the same bits. One prior serves the start noise, the training
    noise and a stochastic solver's steps.

    A subclass is a frozen dataclass that sets ``kind`` and writes ``sample`` and ``covariance``;
    setting ``kind`` registers it. A field annotated ``NoisePrior`` in a pydantic-checked config
    accepts an instance, ``{"kind": ..., ...}`` or the bare kind.
    """

    kind: ClassVar[str]
    _kinds: ClassVar[dict[str, type[NoisePrior]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register a subclass that names its kind."""
        super().__init_subclass__(**kwargs)
        kind = cls.__dict__.get("kind")
        if kind is None:
            return
        known = NoisePrior._kinds.get(kind)
        # the same class comes twice when its module is reloaded
        if known and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InvalidArgumentError(
                f"noise prior kind {kind!r} of {cls.__qualname__} already belongs to "
                f"{known.__module__}.{known.__qualname__}; choose another kind."
            )
        NoisePrior._kinds[kind] = cls

    @abstractmethod
    def sample(
        self, frames: Sequence[int], shape: tuple[int, int, int], key: NoiseKey
    ) -> Float[Tensor, "c f h w"]:
        """Noise of some frames, float32 on the CPU.

        Args:
            frames: absolute frame indices at the key's level (>= 0), in any order.
            shape: (channels, height, width) of a frame.
            key: video, purpose and level.

        Raises:
            InvalidArgumentError: no frame, a negative frame or an empty shape was given.
        """

    @abstractmethod
    def covariance(self, frames: Sequence[int], key: NoiseKey) -> Float64[np.ndarray, "f f"]:
        """Covariance between frames at one position; equal for every stream of the key."""

    def sample_batch(
        self, frames: Sequence[int], shape: tuple[int, int, int], keys: Sequence[NoiseKey]
    ) -> Float[Tensor, "b c f h w"]:
        """Noise of the same frames for several videos, one key each."""
        if not keys:
            raise InvalidArgumentError("no key was given; give one key per video.")
        return torch.stack([self.sample(frames, shape, key) for key in keys])

    @classmethod
    def kinds(cls) -> dict[str, type[NoisePrior]]:
        """All registered priors by kind."""
        return dict(NoisePrior._kinds)

    def to_dict(self) -> dict[str, Any]:
        """The prior as plain data: its kind and its parameters."""
        parameters: dict[str, Any] = asdict(self) if is_dataclass(self) else {}
        return {"kind": self.kind, **parameters}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> NoisePrior:
        """The prior that ``to_dict`` wrote.

        Raises:
            InvalidArgumentError: the kind is missing or a parameter has a wrong value.
            UnknownNameError: no prior has that kind, or the prior has no such parameter.
        """
        parameters = dict(data)
        kind = parameters.pop("kind", None)
        if not isinstance(kind, str):
            raise InvalidArgumentError(
                f"a noise prior was given as {dict(data)!r}; it needs its 'kind', one of "
                f"{', '.join(sorted(NoisePrior._kinds))}."
            )
        cls = NoisePrior._kinds.get(kind)
        if cls is None and kind in plugins.available(plugins.PRIORS):
            cls = plugins.load(plugins.PRIORS, kind)
        if cls is None or isabstract(cls):
            known = [*NoisePrior._kinds, *plugins.available(plugins.PRIORS)]
            raise UnknownNameError("noise prior", kind, known, plugins.INSTALL)
        return cls(**_checked(cls, parameters))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        """Let pydantic check and store a prior as plain data."""
        return core_schema.no_info_plain_validator_function(
            cls._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(NoisePrior.to_dict),
        )

    @classmethod
    def _validate(cls, value: Any) -> NoisePrior:
        """A prior of this class from an instance, plain data or a bare kind."""
        if isinstance(value, str):
            value = {"kind": value}
        if isinstance(value, Mapping):
            value = NoisePrior.from_dict(value)
        if not isinstance(value, cls):
            raise InvalidArgumentError(
                f"{value!r} was given as a noise prior; expected {cls.__name__}, a kind or "
                "a mapping with a 'kind'."
            )
        return value


def check_request(frames: Sequence[int], shape: tuple[int, int, int]) -> None:
    """Raise InvalidArgumentError for frames or a shape that no prior can serve."""
    if not frames or min(frames) < 0:
        raise InvalidArgumentError(
            f"frames {list(frames)} were given; ask for at least one frame, counting from 0."
        )
    if min(shape) < 1:
        raise InvalidArgumentError(
            f"shape {shape} was given; (channels, height, width) must all be at least 1."
        )


def _checked(cls: type[NoisePrior], parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters whose names and types fit a prior; JSON may write 1.0 as 1."""
    known: dict[str, Field[Any]] = {field.name: field for field in fields(cls)} if is_dataclass(cls) else {}
    hints = get_type_hints(cls)
    for name, value in parameters.items():
        if name not in known:
            raise UnknownNameError(f"parameter of noise prior {cls.kind!r}", name, known)
        if hints[name] is float and type(value) is int:
            parameters[name] = float(value)
        elif not _fits(value, hints[name]):
            raise InvalidArgumentError(
                f"noise prior {cls.kind!r} was given {name}={value!r}; expected "
                f"{getattr(hints[name], '__name__', hints[name])}."
            )
    for name, field in known.items():
        if name not in parameters and field.default is field.default_factory is MISSING:
            raise InvalidArgumentError(f"noise prior {cls.kind!r} needs {name!r}; give it.")
    return parameters


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; a bool is an int for Python, not for a config."""
    if isinstance(value, bool) and bool not in (hint, *get_args(hint)):
        return False
    try:
        return isinstance(value, hint)
    except TypeError:  # a type with parameters, which the prior checks itself
        return True
