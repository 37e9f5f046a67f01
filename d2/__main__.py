"""`python -m d2`, the same as the console script."""

from d2.cli import main

if __name__ == "__main__":
    main()
