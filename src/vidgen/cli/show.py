"""``vidgen list`` and ``vidgen info``: what is there, and what it is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from vidgen import plugins
from vidgen.cli.options import Assignments, Json, recipes_of_name, strategy_and_model_names
from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.paths import expanded

__all__ = ["info", "list_"]

_SHOWN = 40  # words or classes


def list_(as_json: Json = False) -> None:
    """List strategies, recipes, bundled models, datasets and networks, with the package each comes from."""
    found = {
        "strategies": plugins.available(plugins.STRATEGIES),
        "recipes": plugins.available(plugins.RECIPES),
        "models": plugins.available(plugins.MODELS),
        "datasets": plugins.available(plugins.DATASETS),
        "networks": plugins.available(plugins.NETWORKS),
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for kind, names in found.items():
        typer.echo(f"{kind}:" if names else f"{kind}: none")
        for name, distribution in names.items():
            typer.echo(f"  {name}  ({distribution})")


def info(
    name: Annotated[
        str,
        typer.Argument(
            help="A strategy, or a checkpoint: its folder, that of a run, a bundled model, or a hub id.",
            autocompletion=strategy_and_model_names,
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(help="Which recipe of the strategy; default: tiny.", autocompletion=recipes_of_name),
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option(help="Video frames of the plan; default: the strategy's own.")
    ] = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Show what a strategy or a checkpoint is, what one network evaluation costs, and the plan of a video.

    Of a strategy nothing is trained, loaded or downloaded: networks are built without weights.
    """
    from vidgen.info import describe, describe_checkpoint

    if _is_checkpoint(name):
        if recipe is not None or assignments:
            raise InvalidArgumentError(
                f"--recipe or --set was given, and {name} is a checkpoint, which is trained already. Give a "
                "strategy with them, or leave them out."
            )
        found = describe_checkpoint(name, num_frames=num_frames)
        lines = [*_checkpoint_lines(found), *(_cost_lines(found) if "plan" in found else ())]
    else:
        found = describe(name, recipe or "tiny", num_frames=num_frames, assignments=assignments or [])
        title = f"{found['strategy']} by the recipe {found['recipe']}"
        lines = [title, *_component_lines(found), *_cost_lines(found)]
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines))


def _is_checkpoint(name: str) -> bool:
    """Whether ``name`` is that of a checkpoint rather than of a strategy; ``./vdm`` is always a folder.

    Raises:
        UnknownNameError: it can be neither.
    """
    strategies = plugins.available(plugins.STRATEGIES)
    recipes, models = plugins.available(plugins.RECIPES), plugins.available(plugins.MODELS)
    if name in models or (name not in strategies and expanded(name).is_dir()):
        return True
    of, slash, _ = name.partition("/")
    if name in strategies or name in recipes:
        return False
    if slash and (of in strategies or of in plugins.available(plugins.TRAINABLES)):
        raise UnknownNameError("recipe", name, recipes)
    if not slash and name not in (".", "..", "~"):
        raise UnknownNameError("strategy or checkpoint", name, {**strategies, **models})
    return True  # a folder that is not there, or the hub's


def _checkpoint_lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['checkpoint']}: {found['strategy']}"
    if "defaults" in found:
        d = found["defaults"]
        yield (f"  makes {d['num_frames']} frame(s) of {d['width']} x {d['height']} at {d['fps']:g} per second")
        for name, level in d["levels"].items():
            solver = f"{level['num_inference_steps']} steps of {level['scheduler']}"
            how = solver if level["scheduler"] else "one pass"
            yield f"  {name}: {how}, guidance scale {level['guidance_scale']:g}"
        yield f"  {_prompts(found['prompts'])}"
    training = found["training"]
    if training is None:
        yield "  its training: not recorded"
    else:
        from vidgen import config as configs
        from vidgen.trainable import TrainingRecord

        record = configs.from_dict(TrainingRecord, training)
        data = record.data
        yield f"  trained on {data.get('videos', '?')} videos of {data.get('name', '?')}; {record}"
    yield from _component_lines(found)


def _prompts(found: dict[str, Any] | None) -> str:
    if found is None:
        return "no prompts"
    if found["kind"] == "text":
        return "prompts: any text"
    names = found[found["kind"]]
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    if found["kind"] == "classes":
        return f"prompts: one of {len(names)} classes: {shown}"
    return f"prompts: up to {found['max_words']} of {len(names)} words: {shown}"


def _component_lines(found: dict[str, Any]) -> Iterator[str]:
    counts = {name: values["parameters"] for name, values in found["components"].items()}
    rows = {**counts, "together": sum(counts.values())}
    left, right = max(map(len, rows)), len(f"{rows['together']:,}")
    for name, count in rows.items():
        yield f"  {name:<{left}}  {count:>{right},} parameters"


def _cost_lines(found: dict[str, Any]) -> Iterator[str]:
    plan = found["plan"]
    yield f"{plan['frames']} frames in {plan['calls']} call(s)"
    yield f"  {plan['waves']} wave(s), of which {plan['critical_path']} must wait for each other"
    yield f"  {plan['peak_frames']} frames of latents alive at once, written to a file as they come"
    yield f"  {found['gmacs_per_call']:.4g} GMACs per call and solver step, without guidance"
