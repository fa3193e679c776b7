"""What a network call is conditioned on, and classifier-free guidance over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from vidgen.errors import InvalidArgumentError
from vidgen.tensors import KnownMask, Latents, Tokens

__all__ = ["Conditioning", "guide"]

_NEGATIVE = "negative:"


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Everything but the noisy latents and the time that a denoiser is told, for ``b`` videos.

    Args:
        tokens: embeddings of the prompts, ``b n d``, or of every frame's, ``b f n d``; None for a model without
            text.
        negative_tokens: embeddings of the unconditional or negative prompts, of the same shape.
        guidance_scale: ``s`` of classifier-free guidance; 1 follows the prompt alone (no guidance),
            0 the negative prompt alone.
        known: ``b f``, True where a frame of the call is given.
        clean: latents ``b c f h w`` of the given frames, zero elsewhere.
        replace: the solver itself overwrites the given frames at every step with their noised
            latents (Ho et al. 2022, section 3.1, the replacement method).
        extras: what one strategy needs besides; each tensor leads with the batch. One named
            ``"negative:NAME"`` stands for ``NAME`` in the unconditional branch of guidance.

    Raises:
        InvalidArgumentError: tensors that disagree on the batch, ``known`` without ``clean`` or
            the reverse, or ``replace`` without both.
    """

    tokens: Tokens | None = None
    negative_tokens: Tokens | None = None
    guidance_scale: float = 1.0
    known: KnownMask | None = None
    clean: Latents | None = None
    replace: bool = False
    extras: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.known is None) != (self.clean is None):
            raise InvalidArgumentError(
                "`known` and `clean` belong together: the mask says which frames are given, the "
                "latents are those frames. Give both or neither."
            )
        if self.replace and self.known is None:
            raise InvalidArgumentError(
                "replace=True has no given frames to write back; give `known` and `clean`."
            )
        batches = {name: tensor.shape[0] for name, tensor in self._tensors().items()}
        if len(set(batches.values())) > 1:
            raise InvalidArgumentError(
                f"the parts of a Conditioning disagree on the batch size: {batches}. Every tensor "
                "leads with one entry per video."
            )

    @property
    def batch(self) -> int | None:
        """Number of videos, or None where nothing is conditioned on."""
        sizes = [tensor.shape[0] for tensor in self._tensors().values()]
        return sizes[0] if sizes else None

    @classmethod
    def collate(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """Join the conditions of several calls along the batch, in order.

        Raises:
            InvalidArgumentError: nothing to join, or parts of different structure (other fields,
                shapes, guidance scale or ``replace``); such calls cannot share a network call.
        """
        if not parts:
            raise InvalidArgumentError("no conditions to collate: give at least one.")
        for index, part in enumerate(parts):
            if part._structure() != parts[0]._structure():
                raise InvalidArgumentError(
                    f"condition {index} cannot join condition 0 in one batch: it has "
                    f"{part._structure()}, the first has {parts[0]._structure()}. Only calls with "
                    "the same fields, shapes and guidance are batched together."
                )
        tensors = [part._tensors() for part in parts]
        joined = {name: torch.cat([t[name] for t in tensors]) for name in tensors[0]}
        return parts[0]._with(joined)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """The same on ``device``; floating-point tensors also in ``dtype``."""
        return self._map(
            lambda tensor: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
        )

    def repeat(self, times: int) -> Conditioning:
        """Every video's conditions ``times`` times in a row (several videos per prompt)."""
        if times < 1:
            raise InvalidArgumentError(f"repeat({times}): give 1 or more.")
        return self._map(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def select(self, indices: Sequence[int]) -> Conditioning:
        """The conditions of the videos at ``indices``, in that order."""
        return self._map(lambda tensor: tensor[list(indices)])

    @property
    def has_negative(self) -> bool:
        """Whether any part has a negative counterpart, so that guidance has two branches to mix."""
        return self.negative_tokens is not None or any(name.startswith(_NEGATIVE) for name in self.extras)

    def negative(self) -> Conditioning:
        """The unconditional branch, unguided: the negative counterpart of what has one, the rest as it is."""
        own = {name.removeprefix(_NEGATIVE): x for name, x in self.extras.items() if name.startswith(_NEGATIVE)}
        extras = self._plain_extras() | own
        tokens = self.tokens if self.negative_tokens is None else self.negative_tokens
        return replace(self, tokens=tokens, negative_tokens=None, guidance_scale=1.0, extras=extras)

    def positive(self) -> Conditioning:
        """The conditional branch: the prompt, unguided."""
        return replace(self, negative_tokens=None, guidance_scale=1.0, extras=self._plain_extras())

    def _plain_extras(self) -> dict[str, Tensor]:
        return {name: x for name, x in self.extras.items() if not name.startswith(_NEGATIVE)}

    def _tensors(self) -> dict[str, Tensor]:
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        own |= {f"extras.{name}": tensor for name, tensor in self.extras.items()}
        return {name: value for name, value in own.items() if isinstance(value, Tensor)}

    def _structure(self) -> dict[str, object]:
        shapes: dict[str, object] = {
            name: (*tensor.shape[1:], str(tensor.dtype)) for name, tensor in self._tensors().items()
        }
        return shapes | {"guidance_scale": self.guidance_scale, "replace": self.replace}

    def _map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        return self._with({name: change(tensor) for name, tensor in self._tensors().items()})

    def _with(self, tensors: dict[str, Tensor]) -> Conditioning:
        return replace(
            self,
            tokens=tensors.get("tokens"),
            negative_tokens=tensors.get("negative_tokens"),
            known=tensors.get("known"),
            clean=tensors.get("clean"),
            extras={name: tensors[f"extras.{name}"] for name in self.extras},
        )


Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]


def guide(predict: Predict, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Classifier-free guidance in one network call of twice the batch.

    ``u + s (c - u)`` with the unconditional prediction ``u``, the conditional one ``c`` and
    ``s = cond.guidance_scale``. Ho & Salimans (2021) write ``(1 + w) c - w u``: the same with
    ``s = 1 + w``. Valid for epsilon-, v-, x0- and flow predictions alike, which are affine in
    each other at a given ``x_t`` and ``t``.

    Args:
        predict: the network, ``(x_t, t, branch) -> prediction``; ``branch`` has no negative tokens.
        x_t: noisy latents, leading with the batch.
        t: time, a scalar or leading with the batch.
        cond: the conditions. Where nothing is to be mixed (``guidance_scale`` 1, or no part of them has a
            negative counterpart) the network is called once, with the batch as it is.
    """
    if cond.guidance_scale == 1 or not cond.has_negative:
        return predict(x_t, t, cond.positive())
    branches = Conditioning.collate([cond.negative(), cond.positive()])
    both_t = torch.cat([t, t]) if t.ndim else t
    negative, positive = predict(torch.cat([x_t, x_t]), both_t, branches).chunk(2)
    # Ho & Salimans 2021, eq. 6 with s = 1 + w.
    return negative + cond.guidance_scale * (positive - negative)
