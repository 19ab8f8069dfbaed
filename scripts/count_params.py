"""``whtnet count`` in a checkout; --help says more."""

from whtnet.commands import main

if __name__ == "__main__":
    main("count")
