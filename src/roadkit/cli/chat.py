"""`roadkit chat --url http://127.0.0.1:8000/v1 --model formal`: talk to a server, to two expressions side by side."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ..client import Client


def chat(
    url: str = typer.Option("http://127.0.0.1:8000/v1", help="The server's address, with /v1."),
    model: list[str] = typer.Option([], "--model", "-m", help="Expression to talk to. Twice: both, side by side."),
    key: str = typer.Option("", help="API key; by default $ROADKIT_API_KEY.", show_default=False),
    system: str = typer.Option("", help="A system message."),
    say: list[str] = typer.Option([], "--say", help="Say this and leave, instead of asking. Repeatable."),
    max_tokens: int = typer.Option(512, help="Tokens of an answer at most."),
    temperature: float = typer.Option(0.0, help="0 is greedy."),
) -> None:
    """Chat with a server in the terminal.

    /model EXPRESSION [| EXPRESSION] changes the model, /clear starts afresh, /quit or Ctrl-D ends.
    """
    from ..client import Client

    client = Client(url, key or os.environ.get("ROADKIT_API_KEY", ""))
    try:
        _converse(client, model, say, system=system, max_tokens=max_tokens, temperature=temperature)
    finally:
        client.close()


def _converse(
    client: Client, model: list[str], say: list[str], *, system: str, max_tokens: int, temperature: float
) -> None:
    from rich.columns import Columns
    from rich.console import Console
    from rich.live import Live
    from rich.panel import Panel
    from rich.text import Text

    from ..client import Talk, interleaved
    from ..errors import RoadkitError

    console = Console()

    def begin(models: list[str]) -> list[Talk]:
        return [Talk(client, name, system=system, max_tokens=max_tokens, temperature=temperature) for name in models]

    talks = begin(model[:2] or client.models()[:1])
    console.print(f"[dim]{' | '.join(talk.model for talk in talks)} on {client.url}; /model, /clear, /quit[/dim]")
    lines = iter(say)
    while True:
        try:
            line = next(lines, None) if say else console.input("[bold cyan]> [/bold cyan]")
        except (EOFError, KeyboardInterrupt):
            break
        if line is None or line.strip() == "/quit":
            break
        command, _, rest = line.strip().partition(" ")
        if command in ("/model", "/clear"):
            names = [name.strip() for name in rest.split("|") if name.strip()][:2] if command == "/model" else []
            talks = begin(names or [talk.model for talk in talks])
            console.print(f"[dim]{' | '.join(talk.model for talk in talks)}[/dim]")
            continue
        if not line.strip():
            continue

        def shown(talks: list[Talk] = talks):
            panels = [Panel(Text(talk.answer), title=talk.model, title_align="left") for talk in talks]
            return panels[0] if len(panels) == 1 else Columns(panels, equal=True, expand=True)

        try:
            with Live(shown(), console=console, refresh_per_second=12, vertical_overflow="visible") as live:
                for _ in interleaved([talk.say(line) for talk in talks]):
                    live.update(shown())
                live.update(shown())
        except KeyboardInterrupt:
            console.print("[dim]stopped[/dim]")
        except RoadkitError as error:
            if say:
                raise
            console.print(f"[red]{error}[/red]")
