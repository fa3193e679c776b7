"""The work folder: finished calls on disk, so that a generation that was cut off goes on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vidgen import config as configs
from vidgen.checkpoint import writable
from vidgen.errors import CheckpointError
from vidgen.paths import expanded
from vidgen.plans import Call, Plan
from vidgen.request import Request
from vidgen.strategy import Strategy
from vidgen.video.parts import part_beside, remove_dead
from vidgen.weights import write_tensors

__all__ = ["WorkFolder", "fingerprint", "kept_seed"]


def fingerprint(
    strategy: Strategy,
    plan: Plan,
    requests: Sequence[Request],
    settings: dict[str, Any],
) -> str:
    """Return a digest of all that decides the latents: weights, noise, plan, requests, solver settings."""
    digest = hashlib.blake2b(digest_size=16)
    described = {
        "strategy": strategy.name,
        "config": configs.to_dict(strategy.config),
        "plan": plan.fingerprint(),
        "requests": [request.settings() for request in requests],
        "settings": settings,
    }
    digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    for name, module in sorted(strategy.modules.items()):
        for key, tensor in sorted(module.state_dict().items()):
            # The head of every tensor tells two checkpoints apart; hashing gigabytes would cost seconds.
            head = tensor.flatten()[:1024].float().cpu().numpy().tobytes()
            digest.update(f"{name}.{key}{tuple(tensor.shape)}".encode() + head)
    return digest.hexdigest()


_INDEX = "work.json"


def kept_seed(folder: str | Path) -> int | None:
    """Return the first video's seed of the generation that ``folder`` holds, or None if it holds none."""
    seed = _read(expanded(folder)).get("seed")
    return seed if isinstance(seed, int) else None


def _read(folder: Path) -> dict[str, Any]:
    index = folder / _INDEX
    try:
        return configs.read_json(index) if index.is_file() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the work folder {folder} cannot be read: {error}. Delete it to begin anew, or give another."
        ) from error


class WorkFolder:
    """Keeps the latents of every finished call of one generation.

    Args:
        folder: created if need be.
        fingerprint: of the generation; a folder of another one is refused.
        seed: of its first video, kept for a repetition that names none.

    Raises:
        CheckpointError: the folder belongs to a generation with other settings, or cannot be written.
    """

    def __init__(self, folder: Path, fingerprint: str, seed: int) -> None:
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(f"{folder} is a file; expected a folder for finished calls.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for place in (folder, *folder.glob("video-*")):
                remove_dead(place)
            found = _read(folder).get("fingerprint")
            if found is None:
                configs.write_json(folder / _INDEX, {"format": 1, "fingerprint": fingerprint, "seed": seed})
        except OSError as error:
            raise CheckpointError(
                f"the work folder {folder} cannot be used: {error}. Give a folder that can be written."
            ) from error
        if found is not None and found != fingerprint:
            raise CheckpointError(
                f"{folder} holds a generation with other settings or weights ({found[:8]}, this one is "
                f"{fingerprint[:8]}). Repeat it with the same arguments to go on, or give a new folder."
            )

    def _file(self, call: Call, video: int) -> Path:
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", call.id)
        tag = hashlib.blake2b(call.id.encode(), digest_size=4).hexdigest()
        return self.folder / f"video-{video:04d}" / f"{name}-{tag}.safetensors"

    def load(self, call: Call, video: int) -> dict[str, Tensor] | None:
        """Return what ``call`` gave for ``video``, or None where it is not finished.

        ``"latents"`` are its kept frames, c f h w; states are kept beside them, c h w, by their level.
        """
        file = self._file(call, video)
        if not file.is_file():
            return None
        try:
            found = load_file(file)
            found["latents"]  # of every call
            return found
        except (SafetensorError, KeyError) as error:
            raise CheckpointError(
                f"{file} is damaged ({error}). Delete it; the call is then computed again."
            ) from error

    def save(self, call: Call, video: int, tensors: dict[str, Tensor]) -> None:
        """Keep what ``call`` gave for ``video``; see ``load``."""
        file = self._file(call, video)
        temporary = part_beside(file)
        with writable(self.folder):
            try:
                file.parent.mkdir(exist_ok=True)
                write_tensors(temporary, tensors)
                temporary.replace(file)
            finally:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
