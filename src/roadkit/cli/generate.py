"""`roadkit generate "Hello" --model smollm2 --adapters adapters --adapter "formal*0.7"`: answer prompts in one batch."""

from __future__ import annotations

import json as jsonlib

import typer

from .options import DEVICE, JSON, MODEL, NAMED, named_adapters


def generate(
    prompts: list[str] = typer.Argument(help="One or more prompts."),
    model: str = MODEL,
    adapters: list[str] = typer.Option([], help=NAMED),
    adapter: list[str] = typer.Option(
        [],
        help="Whom to ask: an adapter's name, an expression such as 'formal*0.7 + brief', or base for the base model "
        "(the default). Repeatable.",
    ),
    raw: bool = typer.Option(False, "--raw", help="Continue the text as it is, without the chat template."),
    max_tokens: int = typer.Option(64, help="Length of an answer at most, in tokens."),
    temperature: float = typer.Option(0.0, help="How freely to sample; 0 takes the likeliest token every time."),
    top_p: float = typer.Option(1.0, help="Sample only from the likeliest tokens that have this probability together."),
    seed: int | None = typer.Option(None, help="The same seed samples the same answer."),
    device: str | None = DEVICE,
    json: bool = JSON,
) -> None:
    """Answer every prompt with every adapter, all in one batch.

    Example: roadkit generate "Why is the sky blue?" --adapters adapters --adapter base --adapter "pirate*0.7 + brief"
    """
    from ..engine.engine import Engine
    from ..engine.request import Request

    asked = [(prompt, name) for prompt in prompts for name in adapter or ["base"]]
    requests = [
        Request(
            prompt=prompt if raw else [{"role": "user", "content": prompt}],
            adapter=None if name == "base" else name,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        for prompt, name in asked
    ]
    engine = Engine.from_pretrained(
        model, adapters=named_adapters(adapters), device=device, max_batch=min(len(requests), 64)
    )
    answers = engine.generate(requests)
    if json:
        rows = [
            {"prompt": prompt, "adapter": name, **answer.model_dump(exclude_none=True)}
            for (prompt, name), answer in zip(asked, answers, strict=True)
        ]
        print(jsonlib.dumps({"answers": rows}, ensure_ascii=False))
    else:
        for (prompt, name), answer in zip(asked, answers, strict=True):
            print(f"[{name}] {prompt}\n{answer.error or answer.text.strip()}\n")
    if any(answer.error for answer in answers):
        raise typer.Exit(1)
