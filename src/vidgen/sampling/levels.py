"""How each level of a generation is answered: one value for all levels, or one by name."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.level_model import LevelModel
from vidgen.noise import NoisePrior
from vidgen.request import LevelSettings
from vidgen.strategy import Strategy

__all__ = ["BY_LEVEL", "settings_of"]

logger = logging.getLogger("vidgen")

BY_LEVEL = ("scheduler", "num_inference_steps", "guidance_scale", "eta")
"""Arguments of a generation that take one value, or ``{level: value}``."""


def settings_of(
    strategy: Strategy, given: Mapping[str, Any], prior: NoisePrior | None
) -> dict[str, LevelSettings]:
    """Return the settings of every level.

    Args:
        strategy: whose levels they are; what is not given is theirs.
        given: the arguments named in ``BY_LEVEL``.
        prior: another noise prior for every level, or None.

    Raises:
        UnknownNameError: there is no such level.
        InvalidArgumentError: a guidance scale is not finite.
        SchedulerError: a scheduler does not fit the level.
    """
    for name in BY_LEVEL:
        for level in given[name] if isinstance(given[name], Mapping) else ():
            if level not in strategy.levels:
                raise UnknownNameError(f"level in {name} of {strategy.name!r}", level, list(strategy.levels))
    found = {}
    for name, model in strategy.levels.items():
        own = {argument: _for_level(given[argument], name) for argument in BY_LEVEL}
        found[name] = _settings(model, own, prior)
    if prior is not None:
        _warn_of(prior, [model.prior for model in strategy.levels.values()])
    return found


def _warn_of(prior: NoisePrior, trained: Sequence[NoisePrior]) -> None:
    """Say if a level was trained on another noise prior."""
    other = next((own for own in trained if own != prior), None)
    if other is not None:
        logger.warning(
            "the noise prior is %s, and the model was trained on %s: what it makes of other noise may be "
            "worse. Leave noise_prior out to sample as it was trained.",
            prior.to_dict(),
            other.to_dict(),
        )


def _for_level(value: Any, level: str) -> Any:
    return value.get(level) if isinstance(value, Mapping) else value


def _settings(model: LevelModel, own: Mapping[str, Any], prior: NoisePrior | None) -> LevelSettings:
    usual = model.settings()
    diffusion, scheduler = usual.diffusion, own["scheduler"]
    if scheduler is not None and diffusion is not None:
        diffusion = diffusion.exchange(scheduler)
    steps, scale = own["num_inference_steps"], own["guidance_scale"]
    scale = usual.guidance_scale if scale is None else float(scale)
    if not math.isfinite(scale):
        raise InvalidArgumentError(
            f"guidance_scale of level {model.name!r} is {scale}; expected a finite number."
        )
    return LevelSettings(
        diffusion,
        usual.prior if prior is None else prior,
        usual.num_inference_steps if steps is None else steps,
        scale,
        0.0 if own["eta"] is None else float(own["eta"]),
    )
