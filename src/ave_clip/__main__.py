"""`python -m ave_clip` is `ave-clip`."""

from .cli import main

if __name__ == "__main__":
    main()
