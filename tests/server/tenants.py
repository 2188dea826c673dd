"""Tenants for tests: `heads, kept = keys(tokens_per_minute=100)` are what they send and what the server keeps."""

from roadkit.server.access.keys import new_key
from roadkit.server.settings import Quota

BODY = {"model": "tiny", "prompt": "the quick", "max_tokens": 4, "temperature": 0}


def keys(**quota):
    """Two tenants' keys and an admin's: texts, and what the server keeps."""
    made = {
        "acme": new_key("acme-ci", tenant="acme", quota=Quota(**quota)),
        "zeta": new_key("zeta-ci", tenant="zeta"),
        "admin": new_key("root", tenant="acme", admin=True),
    }
    return {name: {"Authorization": f"Bearer {text}"} for name, (text, _) in made.items()}, [
        key for _, key in made.values()
    ]
