"""What the codecs around a diffusers VAE share: scaling, options, and their folder."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vidgen.codecs.base import Codec
from vidgen.codecs.files import checked_format, read_module, read_object, write_module
from vidgen.codecs.moments import Moments
from vidgen.config import write_json
from vidgen.errors import CheckpointError, InvalidArgumentError
from vidgen.nn import use_attend
from vidgen.paths import expanded

__all__ = ["SETTINGS", "Scale", "VaeCodec"]

SETTINGS = "codec.json"
FORMAT = 1

Scale = float | Sequence[float]
"""One number for all channels, or one for each."""

C = TypeVar("C", bound="VaeCodec")


class VaeCodec(Codec):
    """A codec around a diffusers VAE, which stays as it is: ``codec.vae``.

    Encoding is deterministic: the mode of the VAE's posterior. Latents are ``(z - mean) / std`` in
    float32, whatever the dtype of the VAE, and so are decoded pixels.

    Args:
        vae: the VAE, of one of ``vae_classes``.
        mean: mean of the VAE's ``z`` over the data, for all channels or for each; None for both
            ``mean`` and ``std`` takes the VAE's own scaling.
        std: its standard deviation, above 0.
        tile: the VAE works on overlapping square tiles with sides of so many pixels where a frame
            is larger, and blends them; None takes frames whole.
        slicing: the VAE takes the frames (or videos) of a batch one by one.

    Raises:
        InvalidArgumentError: a VAE of another class or layout, or an option that does not fit it.
    """

    vae_classes: ClassVar[tuple[Any, ...]]

    def __init__(
        self,
        vae: Any,
        mean: Scale | None = None,
        std: Scale | None = None,
        tile: int | None = None,
        slicing: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(vae, self.vae_classes):
            raise InvalidArgumentError(
                f"{type(self).__name__} was given {type(vae).__name__}; expected "
                f"{' or '.join(kind.__name__ for kind in self.vae_classes)}. `vidgen.codecs.load_codec` picks "
                "the codec that fits a VAE."
            )
        self.vae = vae
        self._check_layout()
        if (mean is None) != (std is None):
            raise InvalidArgumentError(
                f"mean {mean} and std {std} were given: give both, or neither for the VAE's own scaling."
            )
        own_mean, own_std = self._own_scale() if mean is None or std is None else (mean, std)
        self._mean = self._per_channel(own_mean, "mean")
        self._std = self._per_channel(own_std, "std")
        if min(self._std) <= 0:
            raise InvalidArgumentError(f"std {std} has a value that is not above 0; latents are divided by it.")
        self._tile, self._slicing = tile, slicing
        if tile is not None:
            self._check_tile(tile)
        self._set_options()
        use_attend(vae)  # its attention is chosen like every other network's; the values are diffusers' own

    @classmethod
    def fit(
        cls: type[C],
        vae: Any,
        clips: Iterable[Tensor],
        *,
        per_channel: bool = True,
        tile: int | None = None,
        slicing: bool = False,
    ) -> C:
        """A codec whose latents have zero mean and unit variance over ``clips``, read once.

        Args:
            vae, tile, slicing: see the class.
            clips: clips ``b 3 f h w`` in [-1, 1]; sizes and lengths may differ.
            per_channel: normalise each channel alone; otherwise all by the same two numbers.

        Raises:
            InvalidArgumentError: no clip, or latents that are constant or not finite.
        """
        raw = cls(vae, mean=0.0, std=1.0, tile=tile, slicing=slicing)
        moments = Moments()
        with torch.no_grad():
            for clip in clips:
                latents = rearrange(raw.encode(clip.to(raw.device)), "b c f h w -> c (b f h w)")
                moments.add(latents if per_channel else latents.reshape(1, -1))
        mean, std = moments.result()
        return cls(vae, mean=mean, std=std, tile=tile, slicing=slicing)

    @abstractmethod
    def _own_scale(self) -> tuple[Scale, Scale]:
        """Mean and standard deviation of ``z`` as the VAE's configuration has them."""

    @abstractmethod
    def _check_layout(self) -> None:
        """Refuse a VAE that this codec cannot serve."""

    @abstractmethod
    def _check_tile(self, tile: int) -> None:
        """Refuse a tile that the VAE cannot blend."""

    @abstractmethod
    def _set_options(self) -> None:
        """Set tiling and slicing on the VAE, whatever it had."""

    @property
    def device(self) -> torch.device:
        """Where the VAE is."""
        return next(self.vae.parameters()).device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """What the VAE computes in."""
        return next(self.vae.parameters()).dtype  # type: ignore[no-any-return]

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel of the VAE's latents."""
        return self._mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel of the VAE's latents."""
        return self._std

    def _per_channel(self, values: Scale, name: str) -> tuple[float, ...]:
        given = [values] if isinstance(values, int | float) else list(values)
        if len(given) not in (1, self.channels) or not all(math.isfinite(value) for value in given):
            raise InvalidArgumentError(
                f"{name} is {values}; expected one finite number, or one for each of the {self.channels} "
                f"channels of this VAE's latents. `{type(self).__name__}.fit(vae, clips)` measures them."
            )
        return tuple(float(value) for value in given) * (self.channels // len(given))

    def _normalised(self, z: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c ..."]:
        mean, std = self._shaped(z)
        return (z.float() - mean) / std

    def _restored(self, latents: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c ..."]:
        mean, std = self._shaped(latents)
        return (latents.float() * std + mean).to(self.dtype)

    def _shaped(self, like: Tensor) -> tuple[Tensor, Tensor]:
        # Kept as numbers and not as buffers, which a cast of the codec to half precision would round.
        shape = (-1, *[1] * (like.ndim - 2))
        mean, std = (torch.tensor(v, device=like.device).reshape(shape) for v in (self._mean, self._std))
        return mean, std

    def _checked_output(self, values: Tensor) -> Tensor:
        if self.dtype == torch.float16 and not torch.isfinite(values).all():
            raise InvalidArgumentError(
                f"{type(self.vae).__name__} overflows in float16, as some published VAEs do. Use it in float32 "
                "or bfloat16: codec.to(torch.bfloat16)."
            )
        return values.float()

    def get_extra_state(self) -> Tensor:
        """Mean and std as a tensor, so that hashes and saved states of the codec include them."""
        return torch.tensor([self._mean, self._std], dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take mean and std from a saved state."""
        mean, std = state.tolist()
        self._mean, self._std = tuple(mean), tuple(std)

    def save_pretrained(self, folder: str | Path, safe_serialization: bool = True) -> None:
        """Write the VAE as diffusers does, so that its class loads it, and ``codec.json`` beside it.

        Raises:
            InvalidArgumentError: ``safe_serialization`` is False: weights are safetensors only.
        """
        if not safe_serialization:
            raise InvalidArgumentError(
                "safe_serialization=False asks for a pickle; weights are saved as safetensors only."
            )
        folder = expanded(folder)
        write_module(self.vae, folder)
        settings = {"mean": self._mean, "std": self._std, "tile": self._tile, "slicing": self._slicing}
        write_json(folder / SETTINGS, {"format": FORMAT, **settings})

    @classmethod
    def from_pretrained(cls: type[C], folder: str | Path, subfolder: str | None = None) -> C:
        """Load what ``save_pretrained`` wrote, or a plain folder that diffusers saved.

        Within ``torch.device("meta")`` it is built from its configuration alone.

        Raises:
            CheckpointError: files are missing, unsafe, damaged or of another format.
            UnknownNameError: the folder holds a VAE of another class.
        """
        folder = expanded(folder) / (subfolder or "")
        vae = read_module(folder, cls.vae_classes)
        file = folder / SETTINGS
        settings = read_object(file) if file.is_file() else {"format": FORMAT}
        checked_format(settings, file, FORMAT)
        del settings["format"]
        try:
            return cls(vae, **settings)
        except (TypeError, InvalidArgumentError) as error:
            raise CheckpointError(f"{folder} cannot be loaded as a {cls.__name__}: {error}") from error
