"""Checkpoints uploaded to the Hugging Face hub, with a model card."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi

from vidgen.checkpoint.store import save_strategy
from vidgen.components.hub import FILES, HubId, explained, parse
from vidgen.errors import InvalidArgumentError
from vidgen.strategy import Strategy

__all__ = ["push_strategy"]


def push_strategy(
    strategy: Strategy,
    repo_id: str,
    *,
    private: bool = False,
    commit_message: str | None = None,
    token: str | None = None,
    revision: str | None = None,
    whole: bool = True,
) -> str:
    """Upload ``strategy`` as a checkpoint in one commit and return the commit's address.

    The repository is made where it does not exist. Weights and configurations of an earlier push that the
    new checkpoint lacks are deleted; a model card (``README.md``) is written where there is none.

    Args:
        strategy: what to upload.
        repo_id: ``user/repo``.
        private: make a new repository private.
        commit_message: None writes one.
        token: of an account that may write there; None takes the one of ``hf auth login``.
        revision: branch to push to, made where it does not exist; None is the main one.
        whole: upload every component; False refers to bundled models and repositories for what is theirs, and
            leaves out what only training needs, see ``save_strategy``. Who loads a reference to a repository
            must allow it: ``vidgen.load(..., repositories=[...])``.

    Raises:
        InvalidArgumentError: ``repo_id`` is no ``user/repo``.
        CheckpointError: the hub refused, or cannot be reached.
    """
    target = parse(repo_id)
    if target is None or target.revision is not None:
        raise InvalidArgumentError(f"repo_id is {repo_id!r}; expected user/repo, and a branch as revision=.")
    api = HfApi(token=token)
    with TemporaryDirectory() as temporary, explained(HubId(repo_id, revision)):
        folder = save_strategy(strategy, Path(temporary) / "model", whole=whole)
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        if not api.file_exists(repo, "README.md", revision=revision):
            (folder / "README.md").write_text(_card(strategy, repo, revision), encoding="utf-8")
        commit: Any = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message or f"Upload {strategy.name} by vidgen",
            delete_patterns=FILES,
        )
    return str(commit.commit_url)


def _card(strategy: Strategy, repo: str, revision: str | None) -> str:
    """Return a short model card."""
    counts = strategy.num_parameters()
    rows = "\n".join(
        f"| {name} | {type(strategy.modules[name]).__name__} | {count:,} |" for name, count in counts.items()
    )
    d = strategy.defaults
    return f"""---
library_name: vidgen
pipeline_tag: text-to-video
tags:
- vidgen
- video-diffusion
---

# {repo}

A video diffusion model of the strategy `{strategy.name}`. Where nothing else is asked for, it makes
{d.num_frames} frames of {d.width} x {d.height} pixels at {d.fps:g} frames per second.

| component | class | parameters |
|---|---|---|
{rows}

Load it with [vidgen](https://pypi.org/project/vidgen/):

```python
import vidgen

sampler = vidgen.load("{HubId(repo, revision)}")
sampler("", seed=0).videos[0].save("video.mp4")
```
"""
