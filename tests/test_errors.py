"""What errors say of a name that there is not."""

import pytest

from whtnet.errors import did_you_mean


@pytest.mark.parametrize(
    ("word", "known", "answer"),
    [
        ("trian", ["train", "table", "count"], "did you mean train?"),
        ("resnet21", ["resnet20", "mobilenet_v2", "vgg"], "did you mean resnet20?"),
        ("papr", ["paper", "papyr", "gap"], "did you mean papyr or paper?"),
        ("fwht", ["fwht2021/540k", "paper"], "did you mean fwht2021/540k?"),
        ("zzz", ["b", "a"], "there are a, b"),
        ("", ["b", "a"], "there are a, b"),
        ("zzz", [f"{n:02}" for n in range(30)], f"there are {', '.join(f'{n:02}' for n in range(12))}, … (30 in all)"),
        ("zzz", [], "there are none"),
    ],
)
def test_what_was_meant(word, known, answer):
    assert did_you_mean(word, known) == answer


def test_a_prefix_stands_before_each_name():
    assert did_you_mean("epoch", ["epochs", "lr"], "trainer.") == "did you mean trainer.epochs?"
    assert did_you_mean("zzz", ["epochs", "lr"], "trainer.") == "there are trainer.epochs, trainer.lr"
