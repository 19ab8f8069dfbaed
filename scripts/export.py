"""``whtnet export`` in a checkout; --help says more."""

from whtnet.commands.export import main

if __name__ == "__main__":
    main()
