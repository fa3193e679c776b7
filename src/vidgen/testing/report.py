"""What was checked, what came of it, and the error that says what failed and why."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from vidgen.errors import VidgenError

__all__ = ["Broken", "Check", "Report", "Skipped", "StrategyCheckError", "expect", "run_check"]


class Broken(Exception):  # noqa: N818
    """A promise that was not kept; the text says how and what to do."""


class Skipped(Exception):  # noqa: N818
    """There was nothing to check; the text says why."""


class StrategyCheckError(VidgenError, AssertionError):
    """A strategy breaks what vidgen promises of every strategy; ``report`` has every check."""

    def __init__(self, report: Report) -> None:
        """List what failed and why."""
        failed = report.failed
        lines = [f"strategy {report.strategy!r} fails {len(failed)} of {len(report.checks)} checks:"]
        lines += [f"- {check.name}: {check.detail}" for check in failed]
        super().__init__("\n".join(lines))
        self.report = report


@dataclass(frozen=True)
class Check:
    """One promise, and whether it was kept.

    Args:
        name: the promise.
        outcome: of the check.
        detail: what was seen, why it failed and what to do, or why it was skipped.
        seconds: that it took.
    """

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    detail: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """Every check of one strategy, in order.

    Args:
        strategy: its name.
        checks: what was checked.
    """

    strategy: str
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.outcome == "failed")

    @property
    def skipped(self) -> tuple[Check, ...]:
        """The checks that had nothing to look at."""
        return tuple(check for check in self.checks if check.outcome == "skipped")

    def __getitem__(self, name: str) -> Check:
        """Return the check called ``name``."""
        return {check.name: check for check in self.checks}[name]

    def __str__(self) -> str:
        """One line per check."""
        width = max((len(check.name) for check in self.checks), default=0)
        rows = [f"{c.name:<{width}}  {c.outcome:<7}  {c.seconds:6.2f} s  {c.detail}" for c in self.checks]
        return "\n".join([f"strategy {self.strategy}", *rows])


def expect(kept: Any, message: str) -> None:
    """Raise ``Broken`` with ``message`` unless ``kept``."""
    if not kept:
        raise Broken(message)


def run_check(name: str, look: Callable[[], str]) -> Check:
    """Run one check; whatever it raises is its failure."""
    began = time.perf_counter()
    outcome: Literal["passed", "failed", "skipped"] = "passed"
    try:
        detail = look()
    except Skipped as skipped:
        outcome, detail = "skipped", str(skipped)
    except Broken as broken:
        outcome, detail = "failed", str(broken)
    except Exception as error:
        outcome, detail = "failed", f"{type(error).__name__}: {error} (raised {_place(error)})"
    return Check(name, outcome, detail, time.perf_counter() - began)


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"in {frames[-1].name}, {frames[-1].filename}:{frames[-1].lineno}" if frames else "nowhere"
