"""`roadkit keys add NAME --tenant acme --keys keys.json`: the API keys of a server; also `list` and `revoke`."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path

import typer

app = typer.Typer(help="Make, list and revoke the API keys of a server.", no_args_is_help=True)

KEYS = typer.Option(..., "--keys", help="File of keys; it holds digests only. A running server reads it again.")


@app.command()
def add(
    name: str = typer.Argument(help="What the key is called in logs and in this file."),
    keys: Path = KEYS,
    tenant: str = typer.Option("default", help="Whose key it is."),
    admin: bool = typer.Option(False, "--admin", help="May change adapters and read /metrics."),
    requests_per_minute: float | None = typer.Option(None, help="By default, or with 0, without a limit."),
    tokens_per_minute: float | None = typer.Option(None, help="By default, or with 0, without a limit."),
    concurrency: int | None = typer.Option(None, help="Answers at once; by default, or with 0, without a limit."),
    live_expressions: int | None = typer.Option(
        None, help="Different models at once; by default, or with 0, without a limit."
    ),
) -> None:
    """Make a key and print it, this once."""
    from pydantic import ValidationError

    from ..errors import RoadkitError
    from ..server.access.keys import Key, Keyring, new_key
    from ..server.settings import Quota
    from ..validation import problems

    try:
        quota = Quota(
            requests_per_minute=requests_per_minute or None,
            tokens_per_minute=tokens_per_minute or None,
            concurrency=concurrency or None,
            live_expressions=live_expressions or None,
        )
        text, key = new_key(name, tenant=tenant, admin=admin, quota=quota)
    except ValidationError as error:
        raise RoadkitError("; ".join(map(str, problems(error, Key)))) from None
    Keyring.read(keys).adding(key).save(keys)
    print(text)
    print("kept as a digest only: this is the one time the key is shown", file=sys.stderr)


@app.command("list")
def show(keys: Path = KEYS, json: bool = typer.Option(False, "--json", help="Print one JSON object.")) -> None:
    """Names, tenants and quotas of the keys."""
    from ..server.access.keys import Keyring

    found = Keyring.read(keys).keys
    rows = [key.model_dump(mode="json", exclude={"sha256"}, exclude_none=True) for key in found]
    if json:
        print(jsonlib.dumps({"keys": rows}))
        return
    for row in rows:
        quota = ", ".join(f"{limit} {value:g}" for limit, value in row["quota"].items()) or "no limits"
        print(f"{row['name']:20} {row['tenant']:20} {'admin' if row['admin'] else '':6} {quota}")


@app.command()
def revoke(name: str = typer.Argument(help="The key's name."), keys: Path = KEYS) -> None:
    """Take a key away. A running server refuses it within seconds."""
    from ..server.access.keys import Keyring

    Keyring.read(keys).without(name).save(keys)
    print(f"{name} is revoked")
