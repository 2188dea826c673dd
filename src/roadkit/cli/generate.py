"""`roadkit generate "Hello" --model smollm2 --adapters adapters --adapter "formal*0.7"`: answer prompts in one batch."""

from __future__ import annotations

import json as jsonlib

import typer

from .options import DEVICE, named_adapters


def generate(
    prompts: list[str] = typer.Argument(help="One or more prompts."),
    model: str = typer.Option("smollm2", help="Base model: hub id, folder, or smollm2."),
    adapters: list[str] = typer.Option([], help="name=path, an adapter's folder, or a folder of adapters. Repeatable."),
    adapter: list[str] = typer.Option(
        [], help="Expression such as formal*0.7. Repeatable: every prompt is answered with each, 'base' is the base."
    ),
    raw: bool = typer.Option(False, "--raw", help="Continue the text as it is, without the chat template."),
    max_tokens: int = typer.Option(64, help="Tokens to generate at most."),
    temperature: float = typer.Option(0.0, help="0 is greedy."),
    top_p: float = typer.Option(1.0, help="Sample from the smallest set of tokens of this mass."),
    seed: int | None = typer.Option(None, help="Makes sampling repeatable."),
    device: str | None = DEVICE,
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Answer every prompt with every adapter, all in one batch."""
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
