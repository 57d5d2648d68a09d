"""``python -m prebake``: the same as the command ``prebake``."""

from prebake.cli import main

if __name__ == "__main__":
    main()
