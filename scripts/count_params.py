"""``whtnet count`` in a checkout; --help says more."""

from whtnet.commands.count import main

if __name__ == "__main__":
    main()
