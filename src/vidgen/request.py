"""What is asked of a generation, level by level, and what is known of its video so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from vidgen.diffusion import Diffusion
from vidgen.noise import NoisePrior
from vidgen.plans import Slot
from vidgen.weights import digest_of

__all__ = ["Canvas", "Defaults", "LevelSettings", "Prompt", "Request", "by_level"]

Prompt = str | Mapping[int, str] | Sequence[str] | Callable[[int], str]
"""One text for the whole video; ``{first frame: text}``, where each text holds until the next begins; a text
for each frame; or a function of the frame."""


class Canvas(dict[Slot, Tensor]):
    """What is known of one video while it is made: ``(level, frame) -> tensor (c h w)``, on the CPU."""

    def stack(self, slots: tuple[Slot, ...]) -> Tensor:
        """Return the tensors of ``slots`` as one clip, ``c f h w``."""
        return torch.stack([self[slot] for slot in slots], dim=1)


@dataclass(frozen=True)
class Defaults:
    """What a generation makes if nothing else is asked for: usually what the networks were trained on."""

    num_frames: int
    height: int
    width: int
    fps: float


@dataclass(frozen=True)
class LevelSettings:
    """How the calls of one level are answered in a generation.

    Args:
        diffusion: the level's noise process under the chosen solver; None for a level without one.
        prior: the noise prior over frames.
        num_inference_steps: solver steps of every call.
        guidance_scale: of classifier-free guidance; 1 turns it off.
        eta: share of fresh noise in every DDIM step, in [0, 1].
    """

    diffusion: Diffusion | None
    prior: NoisePrior
    num_inference_steps: int = 1
    guidance_scale: float = 1.0
    eta: float = 0.0

    def plain(self) -> dict[str, Any]:
        """Return them in plain values."""
        scheduler: Any = None if self.diffusion is None else self.diffusion.scheduler
        return {
            "scheduler": None if scheduler is None else type(scheduler).__name__,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "eta": self.eta,
        }


@dataclass(frozen=True)
class Request:
    """What was asked for one video.

    Args:
        prompt: text, or ``{first frame: text}``.
        negative_prompt: what guidance moves away from; ``""`` is the unconditional prompt.
        seed: the 63-bit seed of all its noise.
        num_frames: video frames.
        height, width: in pixels.
        fps: frames per second of the result.
        levels: how each level is answered, by its name.
        options: the strategy's own options, an instance of its ``Options``.
        prompt_embeds, negative_prompt_embeds: token embeddings ``n d`` that stand for the texts.
        encoded: token embeddings of texts that were encoded already; the requests of one generation share them.
    """

    prompt: str | Mapping[int, str]
    negative_prompt: str
    seed: int
    num_frames: int
    height: int
    width: int
    fps: float
    levels: Mapping[str, LevelSettings]
    options: Any = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    encoded: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def prompt_at(self, frame: int) -> str:
        """Return the text that holds at video frame ``frame``."""
        if isinstance(self.prompt, str):
            return self.prompt
        starts = [start for start in sorted(self.prompt) if start <= frame]
        return self.prompt[starts[-1] if starts else min(self.prompt)]

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text that an encoder will be asked for."""
        own = () if self.prompt_embeds is not None else self._prompts
        return own if self.negative_prompt_embeds is not None else (*own, self.negative_prompt)

    @property
    def _prompts(self) -> tuple[str, ...]:
        return (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt.values())

    def settings(self) -> dict[str, Any]:
        """Return the request in plain values: settings by level where levels differ, embeddings by digest."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("levels", "encoded")}
        values["options"] = asdict(self.options) if is_dataclass(self.options) else self.options  # type: ignore[arg-type]
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            tensor = values.pop(name)
            if tensor is not None:
                values[name] = digest_of(tensor)
        return values | by_level(self.levels, LevelSettings.plain)


def by_level(
    levels: Mapping[str, LevelSettings], plain: Callable[[LevelSettings], dict[str, Any]]
) -> dict[str, Any]:
    """Return what ``plain`` says of the levels: one value where all agree, else ``{level: value}``."""
    found = {name: plain(settings) for name, settings in levels.items()}
    keys = next(iter(found.values()), {})
    joined: dict[str, Any] = {}
    for key in keys:
        values = {name: settings[key] for name, settings in found.items()}
        first = next(iter(values.values()))
        joined[key] = first if all(value == first for value in values.values()) else values
    return joined
