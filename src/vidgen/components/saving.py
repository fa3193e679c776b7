"""A component to its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from vidgen.weights import WEIGHTS, follow_umask, write_tensors

__all__ = ["save_component", "save_module"]


def save_component(module: Any, folder: Path) -> None:
    """Write ``module`` to the new ``folder``: configuration and safetensors, as readable as other new files.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    if isinstance(module, ModelMixin) and type(module).save_pretrained is ModelMixin.save_pretrained:
        save_module(module, folder)
    elif isinstance(module, ModelMixin):
        module.save_pretrained(folder, safe_serialization=True)
    else:
        module.save_pretrained(folder)
    follow_umask(folder)


def save_module(module: Any, folder: Path) -> None:
    """Write a diffusers module as its own ``save_pretrained`` does, tied weights under all their names.

    diffusers' refuses tied weights. There is one file, however large: readers look for one name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module.save_config(folder)
    write_tensors(folder / WEIGHTS, module.state_dict(), metadata={"format": "pt"})
