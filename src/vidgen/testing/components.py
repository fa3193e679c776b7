"""Checks of what a strategy is made of: declared, saved, loaded, described."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from vidgen import checkpoint, info
from vidgen import config as configs
from vidgen.errors import VidgenError
from vidgen.recipe import Recipe
from vidgen.strategy import Strategy
from vidgen.testing.report import expect
from vidgen.testing.subject import Subject, findable

__all__ = ["configuration", "declared", "described", "loads_alone", "saved", "shared"]

_SAFE = {".json", ".safetensors", ".txt", ".md"}


def configuration(subject: Subject) -> str:
    """A configuration comes back from JSON as it was."""
    plain = configs.to_dict(subject.config)
    again: Any = configs.from_dict(subject.kind.Config, json.loads(json.dumps(plain)))
    expect(
        again == subject.config,
        f"{type(subject.config).__name__} comes back from JSON as {again}; it was {subject.config}. Annotate "
        "its fields with what they hold (tuples, not lists), so that a checkpoint can restore them.",
    )
    return f"{len(plain)} fields"


def declared(subject: Subject) -> str:
    """``component_types`` names every module that has weights, and no other."""
    strategy = subject.strategy
    declared, there = set(strategy.component_types), set(strategy.modules)
    expect(
        declared == there,
        f"component_types names {sorted(declared)}, the strategy holds {sorted(there)}. A checkpoint loads "
        "what component_types names: make them the same.",
    )
    for name, module in strategy.modules.items():
        expect(
            callable(getattr(module, "save_pretrained", None)),
            f"component {name!r} ({type(module).__name__}) has no save_pretrained. Derive it from diffusers' "
            "ModelMixin and ConfigMixin.",
        )
    owned = {id(tensor) for module in strategy.modules.values() for tensor in _tensors(module)}
    for place, module in _modules_of(strategy):
        for key, tensor in _named_tensors(module):
            expect(
                id(tensor) in owned,
                f"{place} ({type(module).__name__}) holds {key!r}, which belongs to no component: a checkpoint "
                "would lose it. Put the module into the strategy's modules and component_types.",
            )
    return ", ".join(sorted(there))


def described(subject: Subject) -> str:
    """``vidgen info`` describes it without weights or memory."""
    recipe = Recipe(subject.kind.name, subject.config, subject.data)
    with findable(subject.kind, recipe):
        found = info.describe(subject.kind.name, "check", num_frames=subject.num_frames)
    counts = {name: part["parameters"] for name, part in found["components"].items()}
    expect(
        counts == subject.strategy.num_parameters(),
        f"without weights it has {counts} parameters, with weights {subject.strategy.num_parameters()}. Build "
        "networks from the configuration alone.",
    )
    json.dumps(found)
    return f"{sum(counts.values()):,} parameters, {found['gmacs_per_call']:.3g} GMACs a call"


def saved(subject: Subject) -> str:
    """Saved and loaded it is the same, to the last bit."""
    strategy, folder = subject.fresh(), subject.folder / "saved"
    loaded = _loaded(subject, checkpoint.save_strategy(strategy, folder))
    files = [path for path in folder.rglob("*") if path.is_file()]
    unsafe = sorted(str(path.relative_to(folder)) for path in files if path.suffix not in _SAFE)
    expect(not unsafe, f"a checkpoint holds {unsafe}; expected JSON and safetensors only.")
    expect(loaded.config == strategy.config, f"the configuration was {strategy.config}, is {loaded.config}.")
    for name, model in strategy.levels.items():
        other = loaded.level(name)
        expect(other.prior == model.prior, f"the prior of {name!r} was {model.prior}, is {other.prior}.")
        was, now = (None if m.diffusion is None else _public(m.diffusion.scheduler) for m in (model, other))
        expect(was == now, f"the scheduler of {name!r} was {was}, is {now}.")
    for name, module in strategy.modules.items():
        _expect_equal(module, loaded.modules[name], f"component {name!r}")
    expect(
        torch.equal(subject.latents(loaded), subject.video),
        "the loaded strategy makes another video of the same seed, although its components are equal: "
        "something that shapes the video is in no component and not in the configuration.",
    )
    return f"{sum(path.stat().st_size for path in files) / 1e6:.2f} MB"


def loads_alone(subject: Subject) -> str:
    """Every component loads alone with its own class."""
    strategy = subject.strategy
    folder = checkpoint.save_strategy(strategy, subject.folder / "alone")
    for name, module in strategy.modules.items():
        kind: Any = type(module)
        options = {"use_safetensors": True} if isinstance(module, ModelMixin) else {}
        try:
            with torch.random.fork_rng(devices=[]):
                loaded = kind.from_pretrained(folder / name, **options)
        except (OSError, ValueError, TypeError, AttributeError, VidgenError) as error:
            expect(False, f"{kind.__name__}.from_pretrained of component {name!r} raises {error!r}.")
        _expect_equal(module, loaded, f"component {name!r} loaded alone")
    return f"{len(strategy.modules)} components"


def shared(subject: Subject) -> str:
    """Without the components of ``training_only`` it makes the same videos, and training can make them anew."""
    names, strategy = subject.kind.training_only, subject.fresh()
    unknown = sorted(set(names) - set(subject.kind.component_types))
    expect(not unknown, f"training_only names {unknown}, which component_types does not.")
    loaded = _loaded(subject, checkpoint.save_strategy(strategy, subject.folder / "shared", whole=False))
    expect(
        torch.equal(subject.latents(loaded), subject.video),
        f"loaded without {list(names)} it makes another video of the same seed: something in training_only "
        "shapes the video. Name there only what no video needs.",
    )
    for name in names:
        network, kinds = loaded.fresh(name), subject.kind.component_types[name]
        expect(
            isinstance(network, kinds),
            f"fresh({name!r}) gives {type(network).__name__}; expected one of {[k.__name__ for k in kinds]}.",
        )
        here, there = network.state_dict(), strategy.modules[name].state_dict()
        expect(
            {key: value.shape for key, value in here.items()} == {k: v.shape for k, v in there.items()},
            f"fresh({name!r}) has other weights than create() makes; expected the same sizes.",
        )
    return ", ".join(names) or "all is needed"


def _loaded(subject: Subject, folder: Path) -> Strategy:
    recipe = Recipe(subject.kind.name, subject.config, subject.data)
    with findable(subject.kind, recipe), torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.seed + 1)  # what is not loaded comes out otherwise
        return checkpoint.load_strategy(folder, device="cpu")


def _expect_equal(module: nn.Module, other: nn.Module, what: str) -> None:
    one, two = module.state_dict(), other.state_dict()
    keys = sorted(one.keys() ^ two.keys())
    expect(not keys, f"{what} has other weights after loading: {keys[:3]}.")
    changed = [key for key in one if not torch.equal(one[key], two[key])]
    expect(not changed, f"{what} comes back with other values in {changed[:3]}; expected the same bits.")


def _public(scheduler: Any) -> dict[str, Any]:
    own = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    return {"class": type(scheduler).__name__, **json.loads(json.dumps(own, default=str))}


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    for _, tensor in _named_tensors(module):
        yield tensor


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    kept = module.state_dict(keep_vars=True)
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in kept)


def _modules_of(strategy: Strategy) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module that the strategy or one of its stages holds, with where it is."""
    yield from _modules_in(vars(strategy), "strategy")
    for stage in strategy.stages():
        yield from _modules_in(getattr(stage, "__dict__", {}), f"stage {stage.name!r}")


def _modules_in(values: Mapping[str, Any], place: str) -> Iterator[tuple[str, nn.Module]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            value = list(value.values())
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, nn.Module):
                yield f"{place}.{name}", part
