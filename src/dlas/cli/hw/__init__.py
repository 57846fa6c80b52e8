"""``dlas hw``: accelerators, as exact models and as simulated hardware."""

from __future__ import annotations

import typer

from dlas.cli.hw import designs, networks, units


def add_to(app: typer.Typer) -> None:
    """Enter the commands."""
    group = typer.Typer(help="Accelerators: run networks on them, prove them, measure them.", no_args_is_help=True,
                        rich_markup_mode=None)  # fmt: skip
    for module in (networks, designs, units):
        module.add_to(group)
    app.add_typer(group, name="hw")
