"""What the author of a strategy runs: ``check_strategy`` holds it to what vidgen promises of every strategy."""

from vidgen.testing.check import check_strategy
from vidgen.testing.report import Check, Report, StrategyCheckError

__all__ = ["Check", "Report", "StrategyCheckError", "check_strategy"]
