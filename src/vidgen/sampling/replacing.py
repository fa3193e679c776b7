"""Which files a generation may write: no input of it, and none that something else made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidgen.errors import InvalidArgumentError, VideoError
from vidgen.paths import expanded
from vidgen.sampling.arguments import Generation
from vidgen.sampling.work import fingerprint
from vidgen.strategy import Strategy
from vidgen.video import read_metadata

__all__ = ["MARK", "marks_of", "refuse_foreign", "refuse_inputs"]

MARK = "fingerprint"
"""The entry of a file's metadata that names what made it."""


def marks_of(strategy: Strategy, generation: Generation) -> list[str]:
    """Return one digest per video of all that decides its pixels, but for the seed."""
    shown = {"frames": generation.targets, "paste_given": generation.paste_given}
    settings = json.dumps(shown).encode()
    common = fingerprint(strategy, generation.plan, (), generation.settings())
    marks = []
    for request in generation.requests:
        own = json.dumps(replace(request, seed=0).settings(), sort_keys=True, default=str).encode()
        marks.append(hashlib.blake2b(settings + common.encode() + own, digest_size=16).hexdigest())
    return marks


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse to write what is read.

    Raises:
        InvalidArgumentError: an output is an input, or two outputs are one file.
    """
    given = {expanded(path).resolve(): path for path in inputs}
    seen: set[Path] = set()
    for path in outputs:
        place = expanded(path).resolve()
        if place in given:
            raise InvalidArgumentError(
                f"{path} was given as an input, and the result would overwrite it. Write to another file, or "
                "say so: --overwrite (overwrite=True)."
            )
        if place in seen:
            raise InvalidArgumentError(f"{path} would be written twice. Give each result a file of its own.")
        seen.add(place)


def refuse_foreign(paths: Sequence[Path], metadata: Sequence[Any], *, seeded: bool) -> None:
    """Refuse to replace a file that another generation, or something else, has made.

    Args:
        paths: where the videos go.
        metadata: what each will say of itself.
        seeded: whether a seed was asked for; otherwise a result of any seed is one of the same generation.

    Raises:
        InvalidArgumentError: a file is there and is no result of the same generation.
    """
    for path, new in zip(paths, metadata, strict=True):
        if not path.is_file():  # folders of pictures are the writer's affair: it replaces none
            continue
        old = _metadata(path)
        same = old.get(MARK) == new[MARK] and (not seeded or old.get("seed") == new["seed"])
        if not same:
            made = f"the result of other settings ({_described(old)})" if MARK in old else "no result of these"
            raise InvalidArgumentError(
                f"{path} exists and is {made}. Write to another file, or say so: --overwrite (overwrite=True)."
            )


def _described(metadata: dict[str, Any]) -> str:
    return f"prompt {metadata.get('prompt')!r}, seed {metadata.get('seed')}"


def _metadata(path: Path) -> dict[str, Any]:
    try:
        return read_metadata(path)
    except VideoError:  # no video at all
        return {}
