"""``whtnet predict`` in a checkout; --help says more."""

from whtnet.commands.predict import main

if __name__ == "__main__":
    main()
