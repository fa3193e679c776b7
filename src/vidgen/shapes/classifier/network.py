"""A small network that reads the shapes data: what is seen, what it does, where, and how clean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vidgen.errors import InvalidArgumentError
from vidgen.shapes.classifier.targets import (
    MAX_BLUR,
    MAX_FLICKER,
    NAMES,
    PATH_SCALE,
    decode_noise,
    decode_positions,
)

__all__ = ["FEATURES", "LOOKS", "Attributes", "Codes", "ImageReading", "Reading", "ShapesClassifier"]

L = TypeVar("L", nn.Linear, nn.Conv1d, nn.Conv2d)

FEATURES = 128
"""Numbers that describe a video, and a frame."""

STRIDE = 8
PIXEL_MEAN, PIXEL_STD = -0.7, 0.35  # of the shapes data
GRAINS = 8
LIGHT_FLOOR = 0.02  # of the brightness in [0, 1]: a channel that the object has nothing of stays calm
LIGHT_GAIN = 4.0  # flickers are a few tenths
GRAIN_FLOOR = 0.01  # a weaker answer than that of one step of 8-bit colour
HARMONIC_GAIN = 3.0  # an object covers a few of the cells only

LOOKS = ("shape", "colour", "background", "size")
"""What a single frame shows; a video has a motion too."""

_CLASSES = {name: len(known) for name, known in NAMES.items()}
FRAME_CLASSES = {name: _CLASSES[name] for name in LOOKS}
VIDEO_CLASSES = _CLASSES

# Numbers are features themselves, and not read from them: a distance between features has no choice but to
# react to them, as much as these gains say.
STRENGTH_GAIN, PLACE_GAIN = 4.0, 1.0
FRAME_NUMBERS = {"place": (4, PLACE_GAIN), "noise": (1, STRENGTH_GAIN), "blur": (1, STRENGTH_GAIN)}
VIDEO_NUMBERS = {
    "centre": (4, PLACE_GAIN),  # mean over time of the places' codes
    "noise": (1, STRENGTH_GAIN),
    "blur": (1, STRENGTH_GAIN),
    "speed": (1, STRENGTH_GAIN),
    "roughness": (1, STRENGTH_GAIN),
    "flicker": (1, STRENGTH_GAIN),
}


@dataclass(frozen=True)
class Attributes:
    """What a video of the shapes data is read as, in the words of ``vidgen.shapes.scene``."""

    shape: str
    colour: str
    motion: str
    background: str
    size: str


@dataclass(frozen=True)
class ImageReading:
    """What the network says of single frames: fields as in ``Reading``, one item per frame."""

    shape: Float[Tensor, "n 3"]
    colour: Float[Tensor, "n 6"]
    background: Float[Tensor, "n 4"]
    size: Float[Tensor, "n 2"]
    position: Float[Tensor, "n 2"]
    noise: Float[Tensor, " n"]
    blur: Float[Tensor, " n"]
    features: Float[Tensor, "n 128"]


@dataclass(frozen=True)
class Reading:
    """What the network says of videos.

    Attributes:
        shape, colour, motion, background, size: logits in the order of ``SHAPES``, ``COLOURS``,
            ``MOTIONS``, ``BACKGROUNDS`` and ``SIZES`` of ``vidgen.shapes.scene``.
        position: of the object's centroid in each frame, ``(x, y)`` in frame sides in [0, 1), on the
            torus; x counts columns, y rows.
        noise: standard deviation of white noise, in pixel values (of [-1, 1]).
        blur: standard deviation of a Gaussian blur, in pixels.
        speed: mean distance from frame to frame, in sides.
        roughness: mean size of the second difference of the positions, in sides.
        flicker: standard deviation over time of the brightness, as a share of it.
        features: of the videos. All of the above but ``position`` is read from them by one linear layer, and
            the numbers stand in the first of them.
        frame_features: of each frame, whatever the others are.
    """

    shape: Float[Tensor, "b 3"]
    colour: Float[Tensor, "b 6"]
    motion: Float[Tensor, "b 7"]
    background: Float[Tensor, "b 4"]
    size: Float[Tensor, "b 2"]
    position: Float[Tensor, "b f 2"]
    noise: Float[Tensor, " b"]
    blur: Float[Tensor, " b"]
    speed: Float[Tensor, " b"]
    roughness: Float[Tensor, " b"]
    flicker: Float[Tensor, " b"]
    features: Float[Tensor, "b 128"]
    frame_features: Float[Tensor, "b f 128"]

    def attributes(self) -> list[Attributes]:
        """Return the most likely names, one set per video."""
        rows = zip(*(getattr(self, name).argmax(1).tolist() for name in NAMES), strict=True)
        return [Attributes(**{n: NAMES[n][i] for n, i in zip(NAMES, row, strict=True)}) for row in rows]


@dataclass(frozen=True)
class Codes:
    """What the heads say: class logits, and numbers as ``vidgen.shapes.classifier.targets`` codes them.

    Attributes:
        video: ``b k`` of each output, read from ``features``.
        frames: ``b f k`` of each output, read from ``frame_features``.
        features, frame_features: as in ``Reading``.
    """

    video: dict[str, Tensor]
    frames: dict[str, Tensor]
    features: Float[Tensor, "b 128"]
    frame_features: Float[Tensor, "b f 128"]


def _even(layer: L) -> L:
    """Draw weights that keep the spread of what passes: there are no norms on the way that would."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _conv(given: int, made: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    # The frame is a torus: what leaves on one side enters on the other.
    return _even(nn.Conv2d(given, made, kernel, stride, kernel // 2, padding_mode="circular"))


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = _conv(width, width, 3), _conv(width, width, 3)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Add to ``x`` what the convolutions make of it."""
        inner: Tensor = self.conv1(functional.silu(self.norm1(x)))
        added: Tensor = self.conv2(functional.silu(self.norm2(inner)))
        return x + added


class HarmonicPool(nn.Module):
    """Mean of each channel, and its first harmonics over the torus: where the channel is active."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 5*c"]:
        """Return the mean, then cosine and sine along x, then along y, of each channel."""
        height, width = x.shape[-2:]
        across = 2 * math.pi * (torch.arange(width, device=x.device) + 0.5) / width
        along = 2 * math.pi * (torch.arange(height, device=x.device) + 0.5) / height
        columns, rows = x.mean(2), x.mean(3)
        parts = [
            columns.mean(2),
            *(HARMONIC_GAIN * (columns * wave.to(x.dtype)).mean(2) for wave in (across.cos(), across.sin())),
            *(HARMONIC_GAIN * (rows * wave.to(x.dtype)).mean(2) for wave in (along.cos(), along.sin())),
        ]
        return torch.cat(parts, dim=1)


class TemporalResidual(nn.Module):
    """A convolution over time beside the identity; the first and the last frame go on for ever."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.pad = dilation
        self.conv = nn.Conv1d(width, width, 3, dilation=dilation)

    def forward(self, x: Float[Tensor, "b c f"]) -> Float[Tensor, "b c f"]:
        """Add to ``x`` what the convolution makes of it."""
        y = functional.pad(functional.silu(self.norm(x)), (self.pad, self.pad), mode="replicate")
        added: Tensor = self.conv(y)
        return x + added


class Grain(nn.Module):
    """How strong small filters answer over a whole picture: noise and blur, which the norms elsewhere hide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filters = nn.Conv2d(3, width, 3, bias=False)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Return the logarithms of each filter's mean strength, and of the mean of its root.

        Roots heed the even ground, where noise is all there is; the mean heeds the edges.
        """
        weight = self.filters.weight
        weight = weight - weight.mean((2, 3), keepdim=True)  # to even ground no filter answers
        answers = functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="circular"), weight)
        strength = answers.float().abs().flatten(2) + GRAIN_FLOOR
        return torch.cat([strength.mean(2).log(), 2 * strength.sqrt().mean(2).log()], dim=1).to(x.dtype) / 2


def unsteadiness(clips: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b 3"]:
    """Return how much the light of red, green and blue changes over time, which the norms elsewhere hide.

    ``LIGHT_GAIN`` times the standard deviation over time of the logarithm of a frame's mean brightness. An
    object on a torus is as bright wherever it is, so that this moves with a gain alone.
    """
    light = ((clips.float() + 1) / 2).mean((3, 4)).clamp_min(0) + LIGHT_FLOOR
    return LIGHT_GAIN * (light.log().var(2, correction=0) + 1e-6).sqrt()


class FrameEncoder(nn.Module):
    """Frames to ``FEATURES`` numbers each, at any size that is a multiple of 8."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        first, second, third = widths
        self.stem = nn.Sequential(_conv(3, first, 5, 2), nn.GroupNorm(8, first), nn.SiLU())
        self.middle = nn.Sequential(_conv(first, second, 3, 2), Residual(second))
        self.late = nn.Sequential(
            _conv(second, third, 3, 2), Residual(third), nn.GroupNorm(8, third), nn.SiLU()
        )
        self.grain = Grain(GRAINS)
        self.pool = HarmonicPool()
        pooled = 6 * third + 2 * GRAINS
        self.embed = nn.Sequential(
            _even(nn.Linear(pooled, FEATURES)), nn.SiLU(), _even(nn.Linear(FEATURES, FEATURES))
        )

    def forward(self, frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 128"]:
        """Describe each frame."""
        frames = (frames - PIXEL_MEAN) / PIXEL_STD
        seen = self.late(self.middle(self.stem(frames)))
        # Where things are; the one that stands out most; how the picture is grained.
        pooled = [self.pool(seen), seen.amax((2, 3)), self.grain(frames)]
        described: Tensor = self.embed(torch.cat(pooled, dim=1))
        return described


class PathEncoder(nn.Module):
    """Frame features over time to what happens: the mean over time of what temporal convolutions see."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = _even(nn.Conv1d(FEATURES, width, 1))
        self.layers = nn.Sequential(*(TemporalResidual(width, dilation) for dilation in (1, 1, 2, 4)))

    def forward(self, features: Float[Tensor, "b f d"]) -> Float[Tensor, "b k"]:
        """Return mean and standard deviation over time of each channel."""
        seen = functional.silu(self.layers(self.enter(features.transpose(1, 2))))
        return torch.cat([seen.mean(2), (seen.var(2, correction=0) + 1e-4).sqrt()], dim=1)


class ShapesClassifier(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers: untyped
    """Reads videos of one moving shape.

    Frames are described one by one; what happens is read from the descriptions over time. Videos have two
    frames or more (motions are told apart from 8 on) and sides that are multiples of 8: resize others first,
    best to the 64 x 64 that it was trained on.

    Args:
        widths: channels at a half, a quarter and an eighth of the frame's size, multiples of 8.
        path_width: channels over time, a multiple of 8.

    Raises:
        InvalidArgumentError: not three widths, or some that are no multiples of 8.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, widths: Sequence[int] = (24, 40, 56), path_width: int = 48) -> None:
        super().__init__()
        if len(widths) != 3 or any(width < 8 or width % 8 for width in (*widths, path_width)):
            raise InvalidArgumentError(
                f"widths={tuple(widths)} and path_width={path_width} were given; expected three widths and one "
                "more, all multiples of 8."
            )
        self.frames = FrameEncoder(widths)
        self.path = PathEncoder(path_width)
        self.summary = _even(nn.Linear(FEATURES + 2 * path_width + 3, FEATURES))
        self.frame_heads = nn.Linear(FEATURES, sum(FRAME_CLASSES.values()))
        self.video_heads = nn.Linear(FEATURES, sum(VIDEO_CLASSES.values()))

    def forward(self, clips: Float[Tensor, "*clips"]) -> Reading:
        """Read videos ``b 3 f h w`` with pixels in [-1, 1].

        Raises:
            InvalidArgumentError: not RGB, sides that are no multiples of 8, or fewer than two frames.
        """
        codes = self.codes(clips)
        video = codes.video
        return Reading(
            **{name: video[name] for name in (*LOOKS, "motion")},
            position=decode_positions(codes.frames["place"]),
            noise=decode_noise(video["noise"][:, 0]),
            blur=(video["blur"][:, 0] * MAX_BLUR).clamp_min(0),
            speed=(video["speed"][:, 0] * PATH_SCALE).clamp_min(0),
            roughness=(video["roughness"][:, 0] * PATH_SCALE).clamp_min(0),
            flicker=(video["flicker"][:, 0] * MAX_FLICKER).clamp_min(0),
            features=codes.features,
            frame_features=codes.frame_features,
        )

    def codes(self, clips: Float[Tensor, "*clips"]) -> Codes:
        """Return what the heads say of videos ``b 3 f h w``, as the training's targets code it.

        Raises:
            InvalidArgumentError: as ``forward``.
        """
        if clips.ndim != 5 or clips.shape[1] != 3 or clips.shape[2] < 2:
            raise InvalidArgumentError(
                f"clips of shape {tuple(clips.shape)} were given; expected b 3 f h w with 2 frames or more. "
                "Single pictures are read by read_images and embed_images."
            )
        frame_features = self.embed_images(clips.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(clips), -1))
        path = self.path(frame_features)
        light = unsteadiness(clips).to(path.dtype)
        features = self.summary(torch.cat([frame_features.mean(1), path, light], dim=1))
        return Codes(
            video=_classes(self.video_heads(features), VIDEO_CLASSES) | _numbers(features, VIDEO_NUMBERS),
            frames=self._frame_codes(frame_features),
            features=features,
            frame_features=frame_features,
        )

    def embed_images(self, frames: Float[Tensor, "*frames"]) -> Float[Tensor, "n 128"]:
        """Describe single pictures ``n 3 h w`` with pixels in [-1, 1]: the image branch alone.

        Raises:
            InvalidArgumentError: not RGB, or sides that are no multiples of 8.
        """
        if frames.ndim != 4 or frames.shape[1] != 3 or frames.shape[2] % STRIDE or frames.shape[3] % STRIDE:
            raise InvalidArgumentError(
                f"pictures of shape {tuple(frames.shape)} were given; expected n 3 h w with h and w multiples "
                f"of {STRIDE}. Resize them first, best to 64 x 64."
            )
        described: Tensor = self.frames(frames.to(self.dtype))
        return described

    def _frame_codes(self, features: Float[Tensor, "*n 128"]) -> dict[str, Tensor]:
        return _classes(self.frame_heads(features), FRAME_CLASSES) | _numbers(features, FRAME_NUMBERS)

    def read_images(self, frames: Float[Tensor, "*frames"]) -> ImageReading:
        """Read single pictures ``n 3 h w``.

        Raises:
            InvalidArgumentError: as ``embed_images``.
        """
        features = self.embed_images(frames)
        codes = self._frame_codes(features)
        return ImageReading(
            **{name: codes[name] for name in LOOKS},
            position=decode_positions(codes["place"]),
            noise=decode_noise(codes["noise"][:, 0]),
            blur=(codes["blur"][:, 0] * MAX_BLUR).clamp_min(0),
            features=features,
        )

    @torch.no_grad()
    def read(self, clips: Float[Tensor, "*clips"]) -> list[Attributes]:
        """Return what each video of ``b 3 f h w`` shows, in words: the most likely of each.

        Raises:
            InvalidArgumentError: as ``forward``.
        """
        return self(clips).attributes()  # type: ignore[no-any-return]


def _classes(values: Float[Tensor, "*n d"], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Cut the heads' output into the logits of each name."""
    return dict(zip(sizes, values.float().split(list(sizes.values()), dim=-1), strict=True))


def _numbers(features: Float[Tensor, "*n d"], sizes: Mapping[str, tuple[int, float]]) -> dict[str, Tensor]:
    """Take the codes of numbers from the first features; float32 whatever these are."""
    first = features[..., : sum(size for size, _ in sizes.values())].float()
    parts = first.split([size for size, _ in sizes.values()], dim=-1)
    return {name: part / gain for (name, (_, gain)), part in zip(sizes.items(), parts, strict=True)}
