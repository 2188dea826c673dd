"""`roadkit demo`: four adapters trained on a real model, eight requests answered with them in one batch."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import time
from pathlib import Path

import typer

from .options import JSON, MODEL


def demo(
    output: Path = typer.Option(Path("adapters"), help="Folder that keeps the trained adapters for the next time."),
    model: str = MODEL,
    question: list[str] = typer.Option([], help="Ask this instead of the three questions. Repeatable."),
    studio: bool = typer.Option(False, "--studio", help="Serve the adapters and open the Studio in a browser instead."),
    port: int = typer.Option(8000, help="Port of the Studio; 0 takes a free one."),
    json: bool = JSON,
) -> None:
    """Train four adapters, then answer eight requests with them in one batch.

    The adapters are kept, so only the first run trains. Then the same eight requests are timed.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
    from transformers.utils.logging import disable_progress_bar

    from .. import demo as demonstration
    from ..engine.engine import Engine
    from ..train.progress import console_progress

    console = Console(stderr=json)
    start = time.perf_counter()
    disable_progress_bar()  # of loading weights; training has one of its own
    trained = demonstration.train_missing(model, output, watch=lambda name: console_progress(console, name))
    if trained:
        console.print(f"trained {', '.join(trained)} in {time.perf_counter() - start:.0f} s, kept in {output}/")
    else:
        console.print(f"using the adapters in {output}/ (delete the folder to train again)")
    if studio:
        _serve(model, output, port)
        return
    engine = Engine.from_pretrained(model, adapters={name: output / name for name in demonstration.ADAPTERS})
    results = {}
    for asked in question or demonstration.QUESTIONS:
        table = Table(title=Text(asked), show_lines=True, title_justify="left")
        table.add_column("adapter", no_wrap=True, style="cyan")
        table.add_column("answer")
        results[asked] = demonstration.answers(engine, asked)
        for answer in results[asked]:
            told = answer.completion.error or answer.completion.text.strip()
            table.add_row(answer.expression or "(base)", Text(told))  # as it is, brackets too
        console.print(table)
    speed = demonstration.speed(engine, Engine.from_pretrained(model))
    table = Table(title="the same eight requests", title_justify="left")
    for column in ("served", "tokens/s", "of the plain model"):
        table.add_column(column, justify="left" if column == "served" else "right")
    for label, value in (
        ("plain model, one batch", speed.plain),
        ("eight different adapters, one batch", speed.mixed),
        ("the same, one request at a time", speed.one_by_one),
    ):
        table.add_row(label, f"{value:.0f}", f"{value / speed.plain:.2f}")
    console.print(table)
    if json:
        answers = {
            asked: {answer.expression or "base": answer.completion.text for answer in rows}
            for asked, rows in results.items()
        }
        facts = {"trained": trained, "answers": answers, "tokens_per_second": dataclasses.asdict(speed)}
        print(jsonlib.dumps({**facts, "seconds": round(time.perf_counter() - start, 1)}, ensure_ascii=False))


def _serve(model: str, adapters: Path, port: int) -> None:
    """The trained adapters behind the Studio, until Ctrl+C. Uploads are kept beside them."""
    import threading
    import webbrowser

    from ..engine.options import EngineOptions
    from ..server import launch
    from ..server.access.keys import Keyring
    from ..server.backends.choice import open_backend
    from ..server.settings import ServerSettings

    def ready(address: str) -> None:
        print(f"the Studio is on {address}/studio (Ctrl+C ends it)", flush=True)
        threading.Thread(target=webbrowser.open, args=(f"{address}/studio",), daemon=True).start()  # lynx would wait

    settings = ServerSettings(model=model, registry=adapters / "registry", drain_seconds=2)
    launch.serve(
        settings,
        Keyring(),
        open_backend(model, EngineOptions(max_batch=32)),
        adapters=[str(adapters)],
        port=port,
        ready=ready,
    )
