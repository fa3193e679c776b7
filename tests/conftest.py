"""Shared by all tests: annotations are checked at run time, one thread per worker, no hub, one random state."""

from __future__ import annotations

import logging
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from jaxtyping import install_import_hook

# The modules whose functions pass tensors along; user-facing ones check their arguments themselves.
TENSOR_MODULES = [
    "shapes.classifier",
    "shapes.clips",
    "shapes.raster",
    "shapes.scene",
    "shapes.synthetic",
    "codecs",
    "conditioning",
    "diffusion",
    "metrics",
    "nn",
    "noise",
    "strategies",
    "video",
]
install_import_hook([f"vidgen.{name}" for name in TENSOR_MODULES], "beartype.beartype")


@pytest.fixture(autouse=True)
def _usual_messages() -> None:
    """The command line shows more messages from its first run on: not so in the tests that follow."""
    logger = logging.getLogger("vidgen")
    logger.setLevel(logging.NOTSET)
    logger.handlers.clear()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before the fixtures of a test: what it draws is the same in any order of the tests."""
    torch.manual_seed(0)
