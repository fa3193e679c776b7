"""Any network as an extractor: a TorchScript file, or a module of your own with a safetensors file.

**TorchScript is a program.** Python unpickles nothing when it is loaded, but its code runs when it is
called: use files only from people you trust, as you would a package. Pickled state dicts are refused.

How the networks of the literature come in:

- *I3D of StyleGAN-V* (Kinetics-400 logits; it rescales and resizes by itself)::

    TorchScriptExtractor(
        "i3d_torchscript.pt", "i3d_k400_styleganv", Preprocessing(value_range=(0, 255), quantise=True),
        arguments={"rescale": True, "resize": True, "return_features": True}, output="logits", min_frames=10,
    )

- *Inception v3 of StyleGAN*, frame by frame, for FID; with ``output="probabilities"`` and the argument
  ``no_output_bias`` for the inception score::

    TorchScriptExtractor(
        "inception-2015-12-05.pt", "inception_v3",
        Preprocessing(value_range=(0, 255), quantise=True, layout="(b f) c h w"),
        arguments={"return_features": True},
    )

- *C3D* (UCF-101 classes; the inception score of videos uses its logits): your ``nn.Module`` and its
  weights in safetensors, with the mean it was trained with::

    StateDictExtractor(
        C3D(101), "c3d_ucf101.safetensors", "c3d_ucf101",
        Preprocessing(size=112, value_range=(0, 255), num_frames=16, mean=..., std=(1, 1, 1)),
        output="logits",
    )
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from vidgen.metrics.extractors.base import NetworkExtractor
from vidgen.metrics.extractors.preprocessing import Preprocessing
from vidgen.paths import expanded
from vidgen.weights import load_weights, weight_hash

__all__ = ["OUTPUTS", "StateDictExtractor", "TorchScriptExtractor"]

OUTPUTS = ("features", "logits", "probabilities")

_CONVERT = (
    "Reading a pickle in Python can run code, so it is not loaded. Where you trust the file, convert it once: "
    'state = torch.load(FILE, map_location="cpu", weights_only=True); state = state.get("state_dict", state); '
    'safetensors.torch.save_file({k: v.clone() for k, v in state.items()}, "weights.safetensors"); and give '
    "that file and its network to StateDictExtractor, or to i3d_extractor for an I3D."
)


class _CalledExtractor(NetworkExtractor):
    """A network that is called with pixels and named arguments, and whose output is declared."""

    def __init__(
        self,
        network: nn.Module,
        name: str,
        preprocessing: Preprocessing,
        *,
        output: str,
        arguments: Mapping[str, Any] | None,
        select: int | str | None,
        **options: Any,
    ) -> None:
        if output not in OUTPUTS:
            raise UnknownNameError("output", output, OUTPUTS)
        self.output, self.select = output, select
        self.arguments = dict(arguments or {})
        try:
            json.dumps(self.arguments)
        except TypeError as error:
            raise InvalidArgumentError(
                f"arguments {self.arguments} cannot be written as JSON ({error}), and they are part of the "
                "fingerprint; give numbers, truth values, strings or lists of them."
            ) from error
        super().__init__(name, network, preprocessing, **options)

    def _describe(self, pixels: Float[Tensor, "n ..."]) -> tuple[Tensor, Tensor | None]:
        try:
            out = self.network(pixels, **self.arguments)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:
            raise InvalidArgumentError(
                f"the network of {self.name} cannot be called with pixels of shape {tuple(pixels.shape)} and "
                f"the arguments {self.arguments}: {error} Check `preprocessing` and `arguments`."
            ) from error
        values = self._selected(out)
        # Pooled maps keep their sides of length 1; longer ones are refused where all outputs are checked.
        while values.ndim > 2 and values.shape[-1] == 1:
            values = values.squeeze(-1)
        values = values.float()
        if self.output == "features":
            return values, None
        if self.output == "logits":
            return values, values
        return values, values.clamp_min(torch.finfo(values.dtype).tiny).log()

    def _selected(self, out: Any) -> Tensor:
        given = f"of type {type(out).__name__}"
        if self.select is not None:
            try:
                out = out[self.select]
            except (KeyError, IndexError, TypeError) as error:
                raise InvalidArgumentError(
                    f"select={self.select!r} does not fit the output {given} of {self.name}: {error!r}"
                ) from error
        if not isinstance(out, Tensor):
            raise InvalidArgumentError(
                f"the network of {self.name} gave an output {given}; expected a tensor. Name the part with "
                "`select`: an index of a tuple, or a key of a dict."
            )
        return out

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the features: also the arguments, the output and what it is."""
        own = {"arguments": self.arguments, "output": self.output, "select": self.select}
        return super().fingerprint() | own


class TorchScriptExtractor(_CalledExtractor):
    """A network in a TorchScript file. It is a program: load only files that you trust.

    Args:
        path: what ``torch.jit.save`` wrote.
        name: part of every metric's key.
        preprocessing: what happens to pixels before the network sees them.
        output: what the network gives: ``"features"``, ``"logits"``, or ``"probabilities"`` (whose
            logarithms are logits). Logits and probabilities are also the features.
        arguments: called with the pixels, such as ``{"return_features": True}``.
        select: which part of a tuple or dict is the output.
        min_frames, chunk: see ``NetworkExtractor``.

    Raises:
        CheckpointError: the file is missing, or is no TorchScript.
        UnknownNameError: ``output`` is none of ``OUTPUTS``.
        InvalidArgumentError: ``arguments`` that are no plain values, or a bad ``name`` or ``chunk``.
    """

    def __init__(
        self,
        path: str | Path,
        name: str,
        preprocessing: Preprocessing,
        *,
        output: str = "features",
        arguments: Mapping[str, Any] | None = None,
        select: int | str | None = None,
        min_frames: int = 1,
        chunk: int = 8,
    ) -> None:
        network, digest = _read_script(expanded(path))
        options: dict[str, Any] = {"weights": digest, "min_frames": min_frames, "chunk": chunk}
        super().__init__(
            network, name, preprocessing, output=output, arguments=arguments, select=select, **options
        )


class StateDictExtractor(_CalledExtractor):
    """A module of your own with weights from a safetensors file.

    Args:
        module: takes the weights, is put into evaluation mode and frozen.
        file: safetensors with exactly the names of ``module.state_dict()``.
        name, preprocessing, output, arguments, select, min_frames, chunk: see ``TorchScriptExtractor``.

    Raises:
        CheckpointError: the file is missing, is no safetensors, or does not fit ``module``.
        UnknownNameError, InvalidArgumentError: see ``TorchScriptExtractor``.
    """

    def __init__(
        self,
        module: nn.Module,
        file: str | Path,
        name: str,
        preprocessing: Preprocessing,
        *,
        output: str = "features",
        arguments: Mapping[str, Any] | None = None,
        select: int | str | None = None,
        min_frames: int = 1,
        chunk: int = 8,
    ) -> None:
        file = expanded(file)
        if file.is_file():
            _refuse_pickle(file)
        load_weights(module, file)
        options: dict[str, Any] = {"weights": weight_hash(module), "min_frames": min_frames, "chunk": chunk}
        super().__init__(
            module, name, preprocessing, output=output, arguments=arguments, select=select, **options
        )

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the features: also the module's class."""
        kind = type(self.network)
        return super().fingerprint() | {"module": f"{kind.__module__}.{kind.__qualname__}"}


def _read_script(file: Path) -> tuple[nn.Module, str]:
    """The program in ``file``, and a digest of the very bytes it was built from."""
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; expected a TorchScript file as torch.jit.save writes it.")
    _refuse_pickle(file)
    if not _has_code(file):
        raise CheckpointError(
            f"{file} is no TorchScript file. Weights in safetensors go with their network to "
            "StateDictExtractor, those of an I3D to i3d_extractor."
        )
    content = file.read_bytes()
    try:
        with warnings.catch_warnings():
            # Published metric networks are TorchScript; torch.export reads none of them.
            warnings.filterwarnings("ignore", message=".*torch.jit.load", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*torch.jit.load", category=DeprecationWarning)
            network: nn.Module = torch.jit.load(io.BytesIO(content), map_location="cpu")
    except RuntimeError as error:
        raise CheckpointError(f"{file} is a damaged TorchScript file: {error}") from error
    return network, hashlib.blake2b(content, digest_size=16).hexdigest()


def _members(file: Path) -> list[str]:
    """Names of the files in an archive; none where ``file`` is no archive."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except zipfile.BadZipFile:
        return []


def _has_code(file: Path) -> bool:
    return any("/code/" in name for name in _members(file))


def _refuse_pickle(file: Path) -> None:
    """Refuse what ``torch.save`` or ``pickle`` writes, with the way out."""
    with file.open("rb") as stream:
        start = stream.read(9)
    # Every binary pickle starts so, and a safetensors file may: its header, "{...}", follows its length.
    plain = start[:1] == b"\x80" and start[8:9] != b"{"
    if plain or (any(name.endswith("data.pkl") for name in _members(file)) and not _has_code(file)):
        raise CheckpointError(f"{file} is a pickle. {_CONVERT}")
