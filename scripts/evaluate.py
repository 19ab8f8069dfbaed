"""``whtnet evaluate`` in a checkout; --help says more."""

from whtnet.commands.evaluate import main

if __name__ == "__main__":
    main()
