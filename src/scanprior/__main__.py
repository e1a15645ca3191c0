"""``python -m scanprior`` is the same as the ``scanprior`` command."""

from scanprior.cli import main

if __name__ == "__main__":
    main()
