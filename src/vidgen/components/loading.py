"""A network from its folder: looked at before it is built, since a configuration may come from a stranger.

First the network is built on PyTorch's meta device, where nothing is allocated, in no more parts than the
weights account for, and its shapes are compared with the header of the weights. Only what fits is built.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from vidgen.config import read_json
from vidgen.errors import CheckpointError, InvalidArgumentError
from vidgen.weights import WEIGHTS, read_shapes, read_tensors, take_weights

__all__ = ["CONFIG", "MAX_BUFFERS", "load_module", "read_config", "weight_files", "within"]

CONFIG = "config.json"

MAX_BUFFERS = 2**30
"""Most bytes of tables that a network may compute from its configuration, beside its weights."""

_MOST_PARTS = 100_000
"""Where there are no weights to compare with: more than any published network has."""

Rename = Callable[[nn.Module, dict[str, Any]], None]
"""``(module, weights)``: gives weights under their old names their new ones, in place."""


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    """Return the ``config.json`` of a ``kind`` in ``folder``.

    Raises:
        CheckpointError: it is missing or no JSON object.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise CheckpointError(
            f"{file} is missing; expected the configuration of a {kind}. Fetch the checkpoint whole."
        )
    try:
        return read_json(file)
    except (OSError, InvalidArgumentError) as error:
        raise CheckpointError(f"{file} is no configuration of a {kind}: {error} Fetch it again.") from error


def load_module(
    kind: Any, folder: Path, config: Mapping[str, Any] | None = None, *, rename: Rename | None = None
) -> nn.Module:
    """Build the diffusers module ``kind`` from ``folder``, and copy its weights, from safetensors only.

    Within ``torch.device("meta")`` it is built from its configuration alone. No random state moves.

    Args:
        kind: a class with diffusers' ``from_config``.
        folder: ``config.json`` and weights, whole or in diffusers' shards.
        config: instead of that of ``config.json``.
        rename: for weights of older layouts.

    Raises:
        CheckpointError: files are missing, unsafe or damaged, do not fit each other, or hold values that are
            not finite.
    """
    config = read_config(folder, kind.__name__) if config is None else config
    where = folder / CONFIG

    def build() -> nn.Module:
        module: nn.Module = kind.from_config(dict(config))
        return module

    if torch.get_default_device().type == "meta":
        with within(_MOST_PARTS, where, kind.__name__):
            return build()
    files, named = weight_files(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= read_shapes(file)
    check_fits(build, shapes, where, named, kind.__name__, rename)
    # The fresh weights are all overwritten: their random numbers must not move the ambient state.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), described(where, kind.__name__):
        module = build()
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= read_tensors(file)
    _take(module, weights, named, rename)
    return module


def _take(module: nn.Module, weights: dict[str, Tensor], file: Path, rename: Rename | None) -> None:
    if rename is not None:
        rename(module, weights)
    take_weights(module, weights, file)


def check_fits(
    build: Callable[[], nn.Module],
    shapes: Mapping[str, tuple[int, ...]],
    where: Path,
    file: Path,
    name: str,
    rename: Rename | None = None,
) -> None:
    """Refuse a configuration whose network has other weights than ``shapes``, without allocating anything.

    Args:
        build: makes the network; asked for it on the meta device.
        shapes: of the weights, by name.
        where: the file that the configuration is in.
        file: the file that the weights are in.
        name: of the network's class.
        rename: see ``load_module``.

    Raises:
        CheckpointError: the configuration describes no network, or another one.
    """
    with torch.device("meta"), within(10 * len(shapes) + 1000, where, name):
        template = build()
    with torch.device("meta"):
        values = {key: torch.empty(shape) for key, shape in shapes.items()}
    kept = {id(value) for value in template.state_dict(keep_vars=True).values()}
    _take(template, values, file, rename)
    size = sum(b.numel() * b.element_size() for b in template.buffers() if id(b) not in kept)
    if size > MAX_BUFFERS:
        raise CheckpointError(
            f"{where} describes a {name} with {size:,} bytes of tables beside its weights; at most "
            f"{MAX_BUFFERS:,} are computed. The file was changed, or is not meant for these weights."
        )


@contextmanager
def described(where: Path, name: str) -> Iterator[None]:
    """Turn whatever building from a stranger's configuration raises into one error that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # any value may stand in the file
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise CheckpointError(
            f"{where} does not describe a {name} of the packages here ({type(error).__name__}: {reason}). Was "
            "it edited, or written by newer ones? Fetch it again."
        ) from error


@contextmanager
def within(parts: int, where: Path, name: str) -> Iterator[None]:
    """Refuse a network that registers more than ``parts`` parameters, or ten times as many modules.

    Raises:
        CheckpointError: it does, or cannot be built.
    """
    left = {"parameters": parts, "modules": 10 * parts}
    own = threading.get_ident()

    def counting(kind: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            if threading.get_ident() != own:  # PyTorch's hooks are every thread's
                return
            left[kind] -= 1
            if left[kind] < 0:
                raise CheckpointError(
                    f"{where} describes a {name} of more {kind} than its weights have names; it is not built. "
                    "The file was changed, or is not meant for these weights: fetch it again."
                )

        return count

    handles = (
        torch_module.register_module_parameter_registration_hook(counting("parameters")),
        torch_module.register_module_module_registration_hook(counting("modules")),
    )
    try:
        with described(where, name):
            yield
    finally:
        for handle in handles:
            handle.remove()


def weight_files(folder: Path) -> tuple[list[Path], Path]:
    """Return the files that the weights in ``folder`` are in, and the one that stands for them in messages.

    Raises:
        CheckpointError: diffusers' index of shards cannot be read, or names files elsewhere.
    """
    shards = folder / f"{WEIGHTS}.index.json"
    if not shards.is_file():
        return [folder / WEIGHTS], folder / WEIGHTS
    try:
        names = {str(name) for name in read_json(shards)["weight_map"].values()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{shards} cannot be read as diffusers' index of weights: {error!r}. Fetch the file again."
        ) from error
    outside = sorted(name for name in names if Path(name).name != name)
    if outside:
        raise CheckpointError(f"{shards} names {outside[0]!r}; expected files beside it. It is not followed.")
    return [folder / name for name in sorted(names)], shards
