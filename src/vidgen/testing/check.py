"""The check of a strategy, from its class to a report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vidgen import plugins
from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.strategy import Strategy
from vidgen.testing import components, sampling, training
from vidgen.testing.report import Report, StrategyCheckError, run_check
from vidgen.testing.subject import Subject, subject_of
from vidgen.video.dataset import DataConfig

__all__ = ["CHECKS", "check_strategy"]

CHECKS: dict[str, Callable[[Subject], str]] = {
    "configuration survives JSON": components.configuration,
    "components are declared": components.declared,
    "described without weights": components.described,
    "saved and loaded alike": components.saved,
    "components load alone": components.loads_alone,
    "shared without what only training needs": components.shared,
    "plans cover every length": sampling.plans,
    "same seed, same video": sampling.seeds,
    "batches change nothing": sampling.batches,
    "spans agree with the whole": sampling.spans,
    "files agree with memory": sampling.streamed,
    "given pictures are kept": sampling.pins,
    "cut-off sampling goes on": sampling.resumed,
    "denoisers keep the shape": sampling.denoisers,
    "settings reach every level": sampling.settings,
    "prompts are understood or refused": sampling.prompts,
    "sampling draws by keys": sampling.keyed,
    "optimisers hold what is declared": training.optimizers,
    "losses reach what is trained": training.gradients,
    "steps change what is declared": training.steps,
    "losses are means over clips": training.micro,
    "training draws by keys": training.keyed,
    "kept latents train alike": training.cached,
    "cut-off training goes on": training.resumed,
}


def check_strategy(
    strategy: Strategy | type[Strategy] | str,
    config: Any = None,
    *,
    data: DataConfig | None = None,
    prompts: Sequence[str] | None = None,
    only: Collection[str] | None = None,
    num_inference_steps: int = 2,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Report:
    """Hold a strategy to what vidgen promises of every strategy; for a plug-in's tests.

    It is built, saved, loaded, sampled in every way and trained for a few steps, on the CPU and on the shapes
    data, so give a small ``config``: networks of some thousand parameters and frames of 16 or 32 pixels take
    seconds. All checks are run, and all that fail are named together. The ambient random state is left as it
    was, and nothing but a temporary folder is written.

    Args:
        strategy: a class, the name under which one is installed, or an object, whose weights are then used;
            fresh weights are given some content, since behind layers that start at zero nothing shows.
        config: of a class or name; by default its ``Config()``. What only the data tell is filled in.
        data: the clips; by default shapes of the strategy's own size and length.
        prompts: texts that the strategy understands; by default captions of the data. ``()`` says that it
            takes no prompts.
        only: names of checks (as in a report) to run instead of all.
        num_inference_steps: solver steps of every call.
        tolerance: how far two ways to the same video or loss may be apart, in units of its spread; batches of
            other sizes round differently.
        seed: of weights, videos and training.

    Returns:
        Every check with what it saw, ``print``-able.

    Raises:
        StrategyCheckError: checks failed; an ``AssertionError`` that names each, why, and what to do.
        InvalidArgumentError: the arguments cannot be used.
        UnknownNameError: no strategy of that name is installed, or there is no such check.

    Example:
        >>> def test_relay():
        ...     check_strategy(Relay, RelayConfig(width=8, sample_size=(16, 16)))
    """
    kind, source = _resolved(strategy, config)
    chosen = CHECKS if only is None else {promise: _named(promise) for promise in only}
    if source is None and config is None:
        config = kind.Config()
    with tempfile.TemporaryDirectory(prefix="vidgen-check-") as name, torch.random.fork_rng(devices=[]):
        subject = subject_of(
            kind,
            source.config if source is not None else config,
            source,
            Path(name),
            data=data,
            prompts=prompts,
            steps=num_inference_steps,
            tolerance=tolerance,
            seed=seed,
        )
        checks = tuple(run_check(promise, partial(look, subject)) for promise, look in chosen.items())
    report = Report(kind.name, checks)
    if report.failed:
        raise StrategyCheckError(report)
    return report


def _named(promise: str) -> Callable[[Subject], str]:
    if promise not in CHECKS:
        raise UnknownNameError("check", promise, CHECKS)
    return CHECKS[promise]


def _resolved(strategy: Any, config: Any) -> tuple[type[Strategy], Strategy | None]:
    if isinstance(strategy, str):
        strategy = plugins.load(plugins.STRATEGIES, strategy)
    if isinstance(strategy, Strategy):
        if config is not None:
            raise InvalidArgumentError(
                f"a built {strategy.name!r} and a config were given; a strategy has its own. Leave config out, "
                "or give the class."
            )
        return type(strategy), strategy
    if not (isinstance(strategy, type) and issubclass(strategy, Strategy)):
        raise InvalidArgumentError(
            f"{strategy!r} was given; expected a subclass of vidgen.Strategy, an object of one, or the name "
            "under which one is installed."
        )
    return strategy, None
