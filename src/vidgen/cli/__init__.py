"""The command line: ``vidgen train``, ``generate``, ``info``, ``list`` and ``data``.

Heavy modules are imported inside the commands, so that ``vidgen --help``, ``vidgen list`` and the shell's
completion answer at once. What a command finds goes to stdout, what it says about it to stderr.
Exit codes: 0 done, 2 wrong use, 1 failed, 130 interrupted.
"""

from vidgen.cli.app import app, main

__all__ = ["app", "main"]
