"""Codecs by the names of their classes: entry point group ``vidgen.codecs``, the built-in ones among them."""

from __future__ import annotations

from typing import Any

from vidgen import plugins
from vidgen.codecs.base import Codec
from vidgen.errors import UnknownNameError, VidgenError

__all__ = ["codec_class", "codec_for"]


def codec_class(name: str) -> type[Codec] | None:
    """Return the codec class that is registered as ``name``; None if there is none.

    Raises:
        VidgenError: the package that registers it gives something else than a codec of that name.
        ImportError: the package's own, unchanged.
    """
    packages = plugins.available(plugins.CODECS)
    if name not in packages:
        return None
    found = plugins.load(plugins.CODECS, name)
    if not (isinstance(found, type) and issubclass(found, Codec) and found.__name__ == name):
        raise VidgenError(
            f"the codec {name!r} of package {packages[name]!r} is {found!r}; expected a subclass of "
            "vidgen.codecs.Codec that is registered by the name of its class. Tell its authors."
        )
    return found


def codec_for(name: str) -> Any:
    """Return the codec class for the class ``name`` of a configuration: itself, or one around such a VAE.

    Raises:
        UnknownNameError: no registered codec serves it.
    """
    found = codec_class(name)
    if found is not None:
        return found
    packages = plugins.available(plugins.CODECS)
    known = set(packages)
    for other in sorted(packages, key=lambda other: packages[other] != "vidgen"):  # imports others last
        kind = codec_class(other)
        served = [vae.__name__ for vae in getattr(kind, "vae_classes", ())]
        if name in served:
            return kind
        known |= set(served)
    raise UnknownNameError("VAE class", name, known, plugins.INSTALL)
