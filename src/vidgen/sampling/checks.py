"""Plain values that a generation is asked for with: of the right type, or refused by name."""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from vidgen.errors import InvalidArgumentError
from vidgen.noise import NoisePrior
from vidgen.plans import Plan, Slot
from vidgen.request import Prompt
from vidgen.sampling.levels import BY_LEVEL

__all__ = [
    "MOST_FRAMES",
    "by_frame",
    "checked_call",
    "checked_plain",
    "checked_types",
    "prior_of",
    "prompts_of",
]

MOST_FRAMES = 1_000_000

_WHOLE = ("seed", "num_frames", "height", "width", "num_inference_steps", "num_videos_per_prompt")
_REAL = ("fps", "guidance_scale", "strength", "eta")
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "latents": (Tensor, "a tensor (b c f h w)"),
    "prompt_embeds": (Tensor, "a tensor (b n d)"),
    "negative_prompt_embeds": (Tensor, "a tensor (b n d)"),
    "plan": (Plan, "a vidgen Plan"),
    "scheduler": ((str, SchedulerMixin, Mapping), "a diffusers scheduler or its name, or {level: scheduler}"),
    "generator": ((torch.Generator, Sequence), "a torch.Generator, or one per video"),
    "pins": (Mapping, "{frame: picture} or {(level, frame): tensor}"),
    "paste_given": (bool, "True or False"),
    "noise_prior": ((str, Mapping, NoisePrior), "a noise prior, its kind, or a mapping with a 'kind'"),
}


def checked_plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers and frames of ``given`` as Python's own: NumPy's count as well.

    Raises:
        InvalidArgumentError: a value is of another type.
    """
    found: dict[str, Any] = {
        name: _each(_whole, name, given[name]) for name in _WHOLE if given[name] is not None
    }
    found |= {name: _each(_real, name, given[name]) for name in _REAL if given[name] is not None}
    if given["frames"] is not None:
        if not isinstance(given["frames"], Iterable):
            raise _wrong("frames", given["frames"], "frames of the video, such as range(0, 8)")
        # one more than any video has: whoever asks for an endless number gets an answer, not silence
        frames = itertools.islice(given["frames"], MOST_FRAMES + 1)
        found["frames"] = tuple(_whole("frames", frame) for frame in frames)
    if given["pins"] is not None:
        found["pins"] = {_place(key): x for key, x in given["pins"].items()}
    return found


def _place(key: Any) -> int | Slot:
    """Return what a pin is for: a frame, or a slot of the plan."""
    if isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str):
        return key[0], _whole("a frame of pins", key[1])
    if isinstance(key, tuple):
        raise _wrong("a key of pins", key, "a frame, or a slot (level, frame) of the plan")
    return _whole("a frame of pins", key)


def checked_types(given: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError for an object that is none of its kind."""
    for name, (kinds, expected) in _TYPES.items():
        if given[name] is not None and (not isinstance(given[name], kinds) or given[name] == ""):
            raise _wrong(name, given[name], expected)
    generators = given["generator"] if isinstance(given["generator"], Sequence) else ()
    if isinstance(generators, str) or not all(isinstance(g, torch.Generator) for g in generators):
        raise _wrong("generator", given["generator"], "a torch.Generator, or one per video")


def checked_call(call: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError for what a call takes besides the arguments of its generation."""
    if call["batch_size"] is not None:
        _whole("batch_size", call["batch_size"])
    for name in ("out", "work"):
        if call[name] is not None and not isinstance(call[name], str | os.PathLike):
            raise _wrong(name, call[name], "a path")
    if call["callback_on_step_end"] is not None and not callable(call["callback_on_step_end"]):
        raise _wrong("callback_on_step_end", call["callback_on_step_end"], "a function")
    names = call["callback_on_step_end_tensor_inputs"]
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise _wrong("callback_on_step_end_tensor_inputs", names, 'a list of names, such as ["latents"]')


def prior_of(value: NoisePrior | str | Mapping[str, Any]) -> NoisePrior:
    """Return a noise prior from an instance, its kind, or a mapping with a ``kind`` and parameters.

    Raises:
        InvalidArgumentError: the mapping has no kind, or a parameter has a wrong value.
        UnknownNameError: no prior of that kind, or it has no such parameter.
    """
    if isinstance(value, NoisePrior):
        return value
    return NoisePrior.from_dict({"kind": value} if isinstance(value, str) else value)


def by_frame(prompt: Prompt, num_frames: int) -> str | Mapping[int, str]:
    """Return one prompt as a text, or as ``{first frame: text}`` with the frames where the text changes.

    Raises:
        InvalidArgumentError: a list without one text for each frame, or a function that returns no text.
    """
    if isinstance(prompt, str | Mapping):
        return prompt
    if callable(prompt):
        texts = [_text(prompt(frame)) for frame in range(num_frames)]
    else:
        texts = [_text(text) for text in prompt]
        if len(texts) != num_frames:
            raise InvalidArgumentError(
                f"a list of {len(texts)} texts was given as one video's prompt, and the video has {num_frames} "
                "frames; expected one text for each frame, or {first frame: text}."
            )
    return {i: text for i, text in enumerate(texts) if i == 0 or text != texts[i - 1]}


def prompts_of(value: Any) -> list[Any]:
    """Return a list of prompts, one per video: see ``Prompt``; class numbers become texts.

    Raises:
        InvalidArgumentError: something else, or an empty mapping or list.
    """
    many = isinstance(value, Sequence) and not isinstance(value, str)
    return [_prompt(prompt) for prompt in (value if many else [value])]


def _prompt(prompt: Any) -> Any:
    if callable(prompt):
        return prompt
    if not isinstance(prompt, Mapping | list | tuple):
        return _text(prompt)
    if not prompt:
        raise InvalidArgumentError(
            f"a prompt is empty ({prompt!r}); expected {{first frame: text}}, or one text for each frame."
        )
    if not isinstance(prompt, Mapping):
        return [_text(text) for text in prompt]
    texts = {_whole("a frame of a prompt", frame): _text(text) for frame, text in prompt.items()}
    if min(texts) < 0:
        raise InvalidArgumentError(f"a prompt begins at frame {min(texts)}; frames count from 0.")
    return texts


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return str(int(operator.index(value)))  # a class label
    except TypeError:
        raise _wrong(
            "a prompt",
            value,
            "a text, a class number, {first frame: text}, a text for each frame, or a function of frames",
        ) from None


def _each(check: Callable[[str, Any], Any], name: str, value: Any) -> Any:
    """Check one value, or that of every level."""
    if isinstance(value, Mapping) and name in BY_LEVEL:
        return {level: check(f"{name} of level {level!r}", own) for level, own in value.items()}
    return check(name, value)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool):
        raise _wrong(name, value, "a whole number")
    try:
        return int(operator.index(value))
    except TypeError:
        raise _wrong(name, value, "a whole number") from None


def _real(name: str, value: Any) -> Any:
    if isinstance(value, int | float):
        return value
    if not isinstance(value, Real):
        raise _wrong(name, value, "a number")
    return float(value)  # NumPy's


def _wrong(name: str, value: Any, expected: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{name} is {value!r} ({type(value).__name__}); expected {expected}.")
