"""The group of all commands: the library's own, and those that packages add."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from vidgen import plugins
from vidgen.cli.exits import exits
from vidgen.errors import VidgenError

__all__ = ["Program"]


class Program(TyperGroup):
    """Adds the commands of the entry point group ``vidgen.commands``, by their names alone."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        try:
            found = plugins.available(plugins.COMMANDS)
        except VidgenError as error:  # the other commands still work
            typer.echo(f"vidgen: {error}", err=True)
            found = {}
        for name, package in found.items():
            # What the library itself offers cannot be replaced.
            self.commands.setdefault(name, _Added(name=name, help=f"Commands of the package {package}."))


class _Added(TyperGroup):
    """A command that is imported when it is called: listing it loads no package."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        command = exits(_command)(str(self.name))
        return command.make_context(info_name, args, parent, **extra)


def _command(name: str) -> Any:
    """Import the typer app that is registered as ``name`` and return it as a group of commands."""
    app = plugins.load(plugins.COMMANDS, name)
    if not isinstance(app, typer.Typer):
        package = plugins.available(plugins.COMMANDS)[name]
        raise VidgenError(
            f"the command {name!r} of package {package!r} is {app!r}; expected a typer.Typer. Tell its authors."
        )
    # As a part of another app, it is a group however many commands it has, without options for the shell.
    whole = typer.Typer(add_completion=False, rich_markup_mode=None)
    whole.add_typer(app, name=name)
    whole.callback()(lambda: None)
    return typer.main.get_command(whole).commands[name]  # type: ignore[attr-defined]
