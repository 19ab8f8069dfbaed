"""``whtnet table`` in a checkout; --help says more."""

from whtnet.commands.table import main

if __name__ == "__main__":
    main()
