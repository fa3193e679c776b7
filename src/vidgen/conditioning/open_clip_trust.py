"""What an open_clip configuration from elsewhere may have loaded: no code, no repository of its own choice."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vidgen.components import repository_allowed
from vidgen.errors import CheckpointError, shown

__all__ = ["check_repository", "check_trusted", "tokenizer_options"]

_OPTIONS = {"additional_special_tokens", "clean", "language", "reduction_mask", "strip_sep_token", "use_fast"}
"""What a configuration may say of its tokenizer: how texts are cut, never from where anything is fetched."""


def check_repository(name: str, model: str) -> None:
    """Refuse a repository, or a folder, that the configuration of ``model`` names and the caller did not.

    What the installed open_clip names itself may be used; so may the repository or folder that ``model`` is.

    Raises:
        CheckpointError: it is another.
    """
    _, _, given = model.partition(":")  # hf-hub:org/name, local-dir:folder
    inside = given and Path(name).is_absolute() and Path(name).is_relative_to(given)
    if name in (given, *_known()) or inside or repository_allowed(name):
        return
    raise CheckpointError(
        f"the configuration of {model!r} names {shown(name)}, which neither you nor the installed open_clip "
        "names; it is not loaded. If you trust it, say so: vidgen.load(..., repositories=[...]), or `with "
        "vidgen.components.repositories_allowed([...])` around an encoder of your own. Or put all files of the "
        "model into one folder and name it with model='local-dir:FOLDER'."
    )


@functools.cache
def _known_of(models: tuple[str, ...]) -> frozenset[str]:
    import open_clip

    names: set[str] = set()
    for model in models:
        names.update(_names(open_clip.get_model_config(model) or {}))
    return frozenset(names)


def _known() -> frozenset[str]:
    import open_clip

    return _known_of(tuple(open_clip.list_models()))


def _names(architecture: Mapping[str, Any]) -> Iterator[str]:
    """Yield the repositories that a configuration names."""
    text, vision = architecture.get("text_cfg") or {}, architecture.get("vision_cfg") or {}
    for found in (text.get("hf_model_name"), text.get("hf_tokenizer_name")):
        if found:
            yield str(found)
    timm = str(vision.get("timm_model_name") or "")
    if ":" in timm:  # else the name of an architecture, which timm itself knows
        yield timm.partition(":")[2].lstrip("/")


def check_trusted(architecture: Mapping[str, Any], model: str) -> None:
    """Refuse an architecture that would load what the caller did not name, or run code.

    Reads, and fetches, the ``config.json`` of a text tower of transformers where it may be used.

    Raises:
        CheckpointError: it would.
        OSError: that ``config.json`` cannot be had.
    """
    for name in _names(architecture):
        check_repository(name, model)
    tower = (architecture.get("text_cfg") or {}).get("hf_model_name")
    if not tower:
        return
    from transformers import PretrainedConfig

    found, _ = PretrainedConfig.get_config_dict(str(tower))
    code = sorted(_code(found))
    if code:
        raise CheckpointError(
            f"the text tower {tower!r} of {model!r} comes with code of its own ({', '.join(code)} in its "
            "config.json). Code of a repository is never run; use a model whose tower transformers has itself."
        )


def _code(config: Any) -> Iterator[str]:
    """Yield the fields, at any depth, by which transformers would run what a repository brings."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == "auto_map" or (str(key).endswith("attn_implementation") and "/" in str(value)):
                yield str(key)
            yield from _code(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _code(value)


def tokenizer_options(architecture: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return the options that a configuration has for its tokenizer.

    Raises:
        CheckpointError: there are others than those that say how texts are cut.
    """
    options = dict(architecture["text_cfg"].get("tokenizer_kwargs") or {})
    options.pop("trust_remote_code", None)  # decided here, not there
    other = sorted(set(options) - _OPTIONS)
    if other:
        raise CheckpointError(
            f"the configuration of {model!r} gives its tokenizer {shown(other)}; expected "
            f"{', '.join(sorted(_OPTIONS))} at most. Others could fetch or read files elsewhere."
        )
    return options
