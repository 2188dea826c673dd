"""`python -m paper` is the experiments' command line: `python -m paper glue`, `python -m paper report`."""

from .cli import main

if __name__ == "__main__":
    main()
