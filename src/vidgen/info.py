"""What a strategy or a checkpoint is made of and what it computes.

Recipes' networks are built on PyTorch's meta device, where tensors have shapes and no values: a model of a
billion parameters is described in seconds on any machine.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vidgen import checkpoint, plugins
from vidgen import config as configs
from vidgen.checkpoint.index import read_index, training_record
from vidgen.components import find_component
from vidgen.conditioning import ClassEncoder, Conditioning, TextEncoder, VocabularyEncoder
from vidgen.diffusion import Denoiser
from vidgen.errors import InvalidArgumentError, VidgenError
from vidgen.level_model import CallBatch
from vidgen.nn import flop_counter
from vidgen.paths import expanded
from vidgen.plans import Call, Plan
from vidgen.recipe import Recipe
from vidgen.request import Canvas, LevelSettings, Request
from vidgen.strategy import Strategy
from vidgen.trainable import StageRecord, TrainingRecord
from vidgen.video.dataset import is_registered, open_dataset

__all__ = ["describe", "describe_checkpoint", "macs_per_call"]


def describe(
    strategy: str, recipe: str = "tiny", *, num_frames: int | None = None, assignments: Iterable[str] = ()
) -> dict[str, Any]:
    """Return what ``strategy`` is under a recipe, and what it costs, as plain values.

    What only the data tell (a vocabulary, say) is taken from the recipe's data where they are procedural or
    their folder exists; otherwise the recipe's configuration is used as it is.

    Args:
        strategy: its name.
        recipe: ``"tiny"`` or ``"vdm/tiny"``, as for ``vidgen train``.
        num_frames: video frames of the plan; None is the strategy's default.
        assignments: changes to the recipe, ``NAME=VALUE``.

    Returns:
        ``strategy`` and ``recipe`` by name; ``components``, each with its number of ``parameters``;
        ``gmacs_per_call``, see ``macs_per_call``, in 1e9; ``plan`` with its video ``frames``, ``calls``,
        ``waves``, ``critical_path`` and ``peak_frames`` (slots alive at once while streaming).

    Raises:
        UnknownNameError: no such strategy, recipe or field.
        InvalidArgumentError: a value that does not fit, or more or fewer frames than the codec can hold.
        VidgenError: the strategy reads the values of tensors where it may only use their shapes.
    """
    _check_frames(num_frames)
    resolved = configs.override(plugins.load_recipe(strategy, recipe), assignments)
    built = _on_meta(resolved)
    return {
        "strategy": strategy,
        "recipe": recipe if "/" in recipe else f"{strategy}/{recipe}",
        "components": {name: {"parameters": count} for name, count in built.num_parameters().items()},
        **_cost(built, num_frames),
    }


def describe_checkpoint(source: str | Path, *, num_frames: int | None = None) -> dict[str, Any]:
    """Return what the checkpoint ``source`` is, how it was trained, and what it costs, as plain values.

    Args:
        source: as for ``vidgen.load``: a checkpoint folder, a run's, a bundled name or a hub id. What a
            trainable trained that is no strategy, such as a codec, will do, too.
        num_frames: video frames of the plan; None is the strategy's default.

    Returns:
        ``checkpoint`` and ``strategy`` by name; ``components``, each with its ``class`` and number of
        ``parameters``, and the checkpoint that it is stored in where it comes ``from`` another;
        ``training``: its ``stages``, whether it is ``finished``, and on what ``data``, or None where the
        checkpoint does not say. Of a strategy also ``defaults`` (frames, size and rate; scheduler, steps and
        guidance scale of each level in ``levels``), ``prompts`` (their ``kind``, and ``words`` or ``classes``
        where these are all; None where there are none), ``gmacs_per_call`` and ``plan`` as from ``describe``.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be read.
        InvalidArgumentError: more or fewer frames than the codec can hold.
    """
    _check_frames(num_frames)
    folder = checkpoint.locate(source)
    index = read_index(folder)
    record = training_record(index, folder)
    found: dict[str, Any] = {"checkpoint": str(source), "strategy": index["strategy"]}
    if index["strategy"] in plugins.available(plugins.TRAINABLES):
        counts = {name: _values_in(find_component(folder, name)) for name in index["components"]}
        return found | {
            "components": _components(counts, index["components"], index["components"]),
            "training": _training(folder, record, [index["strategy"]]),
        }
    strategy = checkpoint.load_strategy(folder, device="cpu")
    training = _training(folder, record, [stage.name for stage in strategy.stages()])
    return found | {
        "components": _components(strategy.num_parameters(), _classes(strategy), index["components"]),
        "training": training,
        "defaults": asdict(strategy.defaults) | {"levels": _levels(strategy)},
        "prompts": _prompts(strategy.text_encoder),
        **_cost(strategy.to("meta"), num_frames),  # only shapes are looked at from here on
    }


def _levels(strategy: Strategy) -> dict[str, dict[str, Any]]:
    found = {name: model.settings().plain() for name, model in strategy.levels.items()}
    return {name: {key: x for key, x in own.items() if key != "eta"} for name, own in found.items()}


def _classes(strategy: Strategy) -> dict[str, str]:
    return {name: type(module).__name__ for name, module in strategy.modules.items()}


def _components(
    counts: Mapping[str, int], classes: Mapping[str, Any], entries: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    found = {name: {"class": classes[name], "parameters": count} for name, count in counts.items()}
    for name, entry in entries.items():
        if isinstance(entry, Mapping) and name in found:
            found[name]["from"] = entry["from"]
    return found


def _values_in(folder: Path) -> int:
    """Count the values in a component's files, by their headers."""
    count = 0
    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            count += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    return count


def _training(folder: Path, record: TrainingRecord | None, stages: Sequence[str]) -> dict[str, Any] | None:
    """Return the checkpoint's record, or what stands in that of a bundled model."""
    if record is None:
        try:
            built = configs.read_json(folder / "record.json")
            steps, data = built["recipe"]["training"]["steps"], built["recipe"]["data"]
            done = tuple(StageRecord(name, steps, steps) for name in stages)
            record = TrainingRecord(done, True, {"name": data["path"], "videos": data["videos"]})
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return configs.to_dict(record)


def _prompts(encoder: TextEncoder | None) -> dict[str, Any] | None:
    if encoder is None:
        return None
    if isinstance(encoder, VocabularyEncoder):
        words = list(encoder.words)
        return {"kind": "words", "words": words, "max_words": encoder.max_words} if words else None
    if isinstance(encoder, ClassEncoder):
        return {"kind": "classes", "classes": list(encoder.config.classes)}
    return {"kind": "text"}


def _check_frames(num_frames: int | None) -> None:
    if num_frames is not None and num_frames < 1:
        raise InvalidArgumentError(f"num_frames is {num_frames}; expected 1 or more.")


def _cost(strategy: Strategy, num_frames: int | None) -> dict[str, Any]:
    """Return what the plan of a video is, and what a call costs, of a strategy on the meta device."""
    request = _request(strategy, num_frames)
    plan = strategy.plan_for(request)
    return {
        "gmacs_per_call": _macs_on_meta(strategy, plan, request) / 1e9,
        "plan": {
            "frames": request.num_frames,
            "calls": plan.num_calls,
            "waves": len(plan.waves()),
            "critical_path": plan.critical_path,
            "peak_frames": plan.peak_frames(),
        },
    }


def macs_per_call(strategy: Strategy, plan: Plan, request: Request) -> float:
    """Return the multiply-accumulates of one network evaluation, averaged over the calls of ``plan``.

    Matrix products, convolutions and attention count; one video, without guidance. What conditions a call
    (a text encoder) is not part of it. Times the calls and the solver's evaluations it is the cost of the
    video. It is the same on every device, the meta device too, and whichever attention backend is chosen.
    """
    kinds = Counter[Hashable]()
    examples: dict[Hashable, Call] = {}
    for call in plan.calls:
        kind = (call.level, strategy.levels[call.level].batch_key(call))
        kinds[kind] += 1
        examples.setdefault(kind, call)
    total = sum(count * _macs(strategy, plan, examples[kind], request) for kind, count in kinds.items())
    return total / plan.num_calls


class _OneEvaluation(CallBatch):
    """A batch whose solver asks the network once, and no more."""

    def solve(self, denoise: Denoiser, start: Tensor | None = None, cond: Conditioning | None = None) -> Tensor:
        """Evaluate ``denoise`` in the middle of the schedule."""
        diffusion = self.settings.diffusion
        if diffusion is None:
            return super().solve(denoise, start, cond)  # says what is missing
        self._solved = True
        start = self.noise() if start is None else start
        t = diffusion.sample_timesteps(torch.full((len(start),), 0.5)).to(start.device)
        return denoise(start, t, self.cond if cond is None else cond)


@torch.no_grad()
def _macs(strategy: Strategy, plan: Plan, call: Call, request: Request) -> float:
    """Count one evaluation of the network that answers ``call``."""
    device, model = strategy.device, strategy.levels[call.level]
    canvas = Canvas()  # on the CPU, as the sampler's; a handful of frames of latents
    for slot in call.given:
        canvas[slot] = torch.zeros(strategy.slot_shape(plan.producer(slot) or call, slot, request))
    cond = Conditioning.collate([model.condition(call, canvas, request)]).positive().to(device)
    batch = _OneEvaluation(model, (call,), (request,), cond, device)
    # The counter hooks what needs gradients, and fails on views of it that have none here.
    with _without_gradients(strategy), flop_counter() as counter:
        model.answer(batch)
    flops = float(counter.get_total_flops())
    # A loop of the level's own was counted whole, the solver for one evaluation.
    evaluations = (
        1 if batch.solved else model.evaluations(call, _solver_evaluations(request.levels[call.level]))
    )
    return flops / 2 / max(1, evaluations)  # PyTorch counts a multiplication and an addition as two


def _solver_evaluations(settings: LevelSettings) -> int:
    diffusion = settings.diffusion
    return 1 if diffusion is None else diffusion.num_evaluations(settings.num_inference_steps)


@contextmanager
def _without_gradients(strategy: Strategy) -> Iterator[None]:
    needing = [p for p in strategy.parameters_of(*strategy.modules) if p.requires_grad]
    for parameter in needing:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in needing:
            parameter.requires_grad_(True)


def _macs_on_meta(strategy: Strategy, plan: Plan, request: Request) -> float:
    try:
        return macs_per_call(strategy, plan, request)
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, VidgenError) or "meta" not in str(error):
            raise
        raise VidgenError(
            f"strategy {strategy.name!r} cannot be counted without computing: its conditions, its denoiser or "
            f"its codec read the values of a tensor, or leave the device of the modules ({error}). Use shapes "
            "there, and move what is given to the strategy's device."
        ) from error


def _on_meta(recipe: Recipe) -> Strategy:
    """Return the strategy of ``recipe``, completed by its data, without weights."""
    strategy_class: type[Strategy] = plugins.load(plugins.STRATEGIES, recipe.strategy)
    path = recipe.data.path
    if path and (is_registered(path) or expanded(path).is_dir()):
        dataset = open_dataset(recipe.data, progress=False)
        recipe = replace(recipe, model=strategy_class.prepare(recipe.model, dataset))
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _SchedulersOnCpu():
        strategy = strategy_class.create(recipe.model)
    for module in strategy.modules.values():
        module.eval()
    return strategy


class _SchedulersOnCpu(TorchFunctionMode):
    """Keeps diffusers' schedulers off the meta device: many read their own tables while they are built."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "torch":
            frame = frame.f_back
        if frame.f_globals.get("__name__", "").startswith("diffusers.schedulers."):
            with torch.device("cpu"):
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _request(strategy: Strategy, num_frames: int | None) -> Request:
    d = strategy.defaults
    return Request(
        prompt="",
        negative_prompt="",
        seed=0,
        num_frames=num_frames or d.num_frames,
        height=d.height,
        width=d.width,
        fps=d.fps,
        levels={name: replace(model.settings(), guidance_scale=1.0) for name, model in strategy.levels.items()},
        options=strategy.Options(),
    )
