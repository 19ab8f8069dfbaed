"""``whtnet train`` in a checkout: ``python train.py backbone=resnet20 policy=paper dataset=cifar10 seed=3``."""

from whtnet.commands import main

if __name__ == "__main__":
    main("train")
