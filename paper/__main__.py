"""`python -m paper glue …`, `python -m paper report`: the experiments of the paper."""

from .cli import main

main()
