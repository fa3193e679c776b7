"""What is done to pixels before a network sees them, declared so that it is part of a fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from vidgen.config import to_dict
from vidgen.errors import InvalidArgumentError, UnknownNameError

__all__ = ["FRAMES", "INTERPOLATIONS", "LAYOUTS", "RESIZES", "Preprocessing", "check_clips"]

RESIZES = ("squash", "crop")
INTERPOLATIONS = ("bilinear", "bicubic")
FRAMES = ("first", "centre")
PER_FRAME = "(b f) c h w"
LAYOUTS = ("b c f h w", "b f c h w", PER_FRAME)

FAR_OUT = 4.0
"""No decoder leaves [-1, 1] by that much; pixels in [0, 255] do."""


@dataclass(frozen=True)
class Preprocessing:
    """How clips in [-1, 1] become a network's input; each field decides the features.

    The order is: frames are chosen, values clamped to [-1, 1], rounded to 8 bits where asked, resized,
    brought to ``value_range``, normalised by ``mean`` and ``std``, and laid out. The published I3D
    metrics differ here: Google's FVD and TATS squash to 224 x 224, MCVD crops, none of them antialiases.
    Google's code samples at pixel corners besides, as TensorFlow 1 did; its ports, and this one, at centres.

    Args:
        size: side of the square that the network sees; None leaves pixels at their size.
        resize: ``"squash"`` changes the proportions; ``"crop"`` scales the short side to ``size``
            (the long side rounded up) and cuts out the centre.
        interpolation: ``"bilinear"`` or ``"bicubic"``, with half-pixel centres.
        antialias: filter before scaling down, as Pillow does.
        value_range: what -1 and 1 become, such as ``(-1, 1)``, ``(0, 1)`` or ``(0, 255)``.
        mean, std: of the channels, in ``value_range``; both or neither.
        layout: ``"b c f h w"``, ``"b f c h w"``, or ``"(b f) c h w"`` for a network of single frames.
        num_frames: how many frames the network sees; a clip with fewer is refused, never stretched. None
            takes them all.
        frames: which ones where a clip has more: the ``"first"`` or those in the ``"centre"``.
        quantise: round to 256 levels first, as if the clip came from an 8-bit file.

    Raises:
        UnknownNameError: a mode that is none of the above.
        InvalidArgumentError: a number that cannot be used.
    """

    size: int | None = None
    resize: str = "squash"
    interpolation: str = "bilinear"
    antialias: bool = False
    value_range: tuple[int | float, int | float] = (-1.0, 1.0)
    mean: tuple[int | float, ...] | None = None
    std: tuple[int | float, ...] | None = None
    layout: str = LAYOUTS[0]
    num_frames: int | None = None
    frames: str = "first"
    quantise: bool = False

    def __post_init__(self) -> None:
        for field, known in (
            ("resize", RESIZES),
            ("interpolation", INTERPOLATIONS),
            ("layout", LAYOUTS),
            ("frames", FRAMES),
        ):
            if getattr(self, field) not in known:
                raise UnknownNameError(field, str(getattr(self, field)), known)
        for field in ("size", "num_frames"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InvalidArgumentError(
                    f"{field} is {value}; give 1 or more, or None to leave clips as they are."
                )
        low, high = self.value_range
        if not low < high:
            raise InvalidArgumentError(
                f"value_range is {self.value_range}; expected (low, high) with low < high."
            )
        self._check_moments()
        for field in ("value_range", "mean", "std"):
            given = getattr(self, field)
            if given is not None:  # 255 and 255.0 are one fingerprint
                object.__setattr__(self, field, tuple(float(value) for value in given))

    def _check_moments(self) -> None:
        given = (self.mean, self.std)
        if given == (None, None):
            return
        if any(v is None or len(v) != 3 for v in given) or min(self.std or ()) <= 0:
            raise InvalidArgumentError(
                f"mean {self.mean} and std {self.std} were given; expected three numbers each, for red, green "
                "and blue, with every std above 0, or neither."
            )

    @property
    def per_frame(self) -> bool:
        """Whether each frame becomes an item of its own."""
        return self.layout == PER_FRAME

    def to_json(self) -> dict[str, Any]:
        """Return every field in plain JSON values."""
        return to_dict(self)

    def apply(self, clips: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "n ..."]:
        """Return ``clips`` in [-1, 1] as the network wants them: float32, laid out as ``layout``.

        The given tensor is not changed.

        Raises:
            InvalidArgumentError: fewer frames than ``num_frames``.
        """
        return self.prepare(self.select(clips))

    def select(self, clips: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b 3 k h w"]:
        """Return the frames that the network sees.

        Raises:
            InvalidArgumentError: fewer frames than ``num_frames``.
        """
        if self.num_frames is None:
            return clips
        have, want = clips.shape[2], self.num_frames
        if have < want:
            raise InvalidArgumentError(
                f"clips of {have} frames were given; this preprocessing takes {want} and repeats none. Give "
                "longer clips, or use an extractor that takes shorter ones."
            )
        start = (have - want) // 2 if self.frames == "centre" else 0
        return clips[:, :, start : start + want]

    def prepare(self, clips: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "n ..."]:
        """Return chosen frames resized, scaled and laid out: ``apply`` without ``select``."""
        batch = len(clips)
        pixels = rearrange(clips.float(), "b c f h w -> (b f) c h w").clamp(-1, 1)
        if self.quantise:
            pixels = ((pixels + 1) * 127.5).round() / 127.5 - 1
        pixels = self._resized(pixels)
        low, high = self.value_range
        if (low, high) != (-1, 1):
            pixels = (pixels + 1) / 2 * (high - low) + low
        if self.mean is not None and self.std is not None:
            mean, std = (pixels.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
            pixels = (pixels - mean) / std
        if self.per_frame:
            return pixels
        return rearrange(pixels, f"(b f) c h w -> {self.layout}", b=batch)

    def _resized(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 y x"]:
        if self.size is None:
            return pixels
        height, width = pixels.shape[-2:]
        target = (self.size, self.size)
        if self.resize == "crop":
            short = min(height, width)
            # In integers: a rounding error must not make the short side a pixel longer.
            target = (-(-height * self.size // short), -(-width * self.size // short))
        if target != (height, width):
            pixels = functional.interpolate(
                pixels, target, mode=self.interpolation, align_corners=False, antialias=self.antialias
            ).clamp(-1, 1)  # the bicubic kernel overshoots at edges
        top, left = ((side - self.size) // 2 for side in target)
        return pixels[..., top : top + self.size, left : left + self.size]


def check_clips(clips: Float[Tensor, "b c f h w"], name: str, min_frames: int) -> None:
    """Refuse what the extractor ``name`` cannot describe.

    Raises:
        InvalidArgumentError: no videos, not RGB, too few frames, or values that are no pixels in [-1, 1].
    """
    if clips.ndim != 5 or clips.shape[1] != 3 or 0 in clips.shape:
        raise InvalidArgumentError(
            f"{name} was given a tensor of shape {tuple(clips.shape)}; expected RGB clips b 3 f h w with at "
            "least one video."
        )
    if clips.shape[2] < min_frames:
        raise InvalidArgumentError(
            f"{name} was given clips of {clips.shape[2]} frames; it needs {min_frames} or more. Give longer "
            "clips, or use another extractor."
        )
    if not clips.is_floating_point():
        raise InvalidArgumentError(
            f"{name} was given {clips.dtype}; expected floats in [-1, 1]: clips.float() / 127.5 - 1 for 8 bits."
        )
    reach = clips.detach().abs().amax()
    if not reach <= FAR_OUT:
        raise InvalidArgumentError(
            f"{name} was given clips whose values reach {float(reach):g}; expected pixels in [-1, 1]. Pixels "
            "in [0, 255] are brought there by `/ 127.5 - 1`; NaN comes from a broken model."
        )
