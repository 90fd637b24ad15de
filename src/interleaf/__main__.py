"""`python -m interleaf` is the command `interleaf`."""

from interleaf.cli import main

if __name__ == "__main__":
    main()
