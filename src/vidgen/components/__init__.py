"""Components on disk: a network's folder, wherever it lies, read with no trust in what it says.

A checkpoint's component is a folder of its own, or a reference to that of another checkpoint.
"""

from vidgen.components.hub import HubId
from vidgen.components.loading import check_fits, described, load_module, read_config, within
from vidgen.components.references import (
    INDEX,
    Located,
    Reference,
    component_hash,
    find_component,
    is_reference,
    locate_component,
    relative_source,
    repositories_allowed,
    repository_allowed,
)
from vidgen.components.saving import save_component

__all__ = [
    "INDEX",
    "HubId",
    "Located",
    "Reference",
    "check_fits",
    "component_hash",
    "described",
    "find_component",
    "is_reference",
    "load_module",
    "locate_component",
    "read_config",
    "relative_source",
    "repositories_allowed",
    "repository_allowed",
    "save_component",
    "within",
]
