"""``vidgen list`` and ``vidgen info``: what is there, and what it is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from vidgen import plugins
from vidgen.cli.options import Assignments, Json, RecipeName, StrategyName

__all__ = ["info", "list_"]


def list_(as_json: Json = False) -> None:
    """List strategies, recipes and bundled models, with the package each comes from."""
    found = {
        "strategies": plugins.available(plugins.STRATEGIES),
        "recipes": plugins.available(plugins.RECIPES),
        "models": plugins.available(plugins.MODELS),
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for kind, names in found.items():
        typer.echo(f"{kind}:" if names else f"{kind}: none")
        for name, distribution in names.items():
            typer.echo(f"  {name}  ({distribution})")


def info(
    strategy: StrategyName,
    recipe: RecipeName = "tiny",
    num_frames: Annotated[
        int | None, typer.Option(help="Video frames of the plan; default: the strategy's own.")
    ] = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Show a strategy's components, what one network evaluation costs, and the plan of a video.

    Nothing is trained, loaded or downloaded: networks are built without weights.
    """
    from vidgen.info import describe

    found = describe(strategy, recipe, num_frames=num_frames, assignments=assignments or [])
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    """Yield what ``vidgen.info.describe`` found as lines of a table."""
    counts = {name: values["parameters"] for name, values in found["components"].items()}
    rows = {**counts, "together": sum(counts.values())}
    left, right = max(map(len, rows)), len(f"{rows['together']:,}")
    yield f"{found['strategy']} by the recipe {found['recipe']}"
    for name, count in rows.items():
        yield f"  {name:<{left}}  {count:>{right},} parameters"
    plan = found["plan"]
    yield f"{plan['frames']} frames in {plan['calls']} call(s)"
    yield f"  {plan['waves']} wave(s), of which {plan['critical_path']} must wait for each other"
    yield f"  {plan['peak_frames']} frames of latents alive at once, written to a file as they come"
    yield f"  {found['gmacs_per_call']:.4g} GMACs per call and solver step, without guidance"
