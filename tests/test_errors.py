"""What errors say of a name that there is not."""

import pytest

from whtnet.errors import UserError, did_you_mean, limits_told


@pytest.mark.parametrize(
    ("word", "known", "answer"),
    [
        ("trian", ["train", "table", "count"], "did you mean train?"),
        ("resnet21", ["resnet20", "mobilenet_v2", "vgg"], "did you mean resnet20?"),
        ("papr", ["paper", "papyr", "gap"], "did you mean papyr or paper?"),
        ("fwht", ["fwht2021/540k", "paper"], "did you mean fwht2021/540k?"),
        ("zzz", ["b", "a"], "there are a, b"),
        ("", ["b", "a"], "there are a, b"),
        ("zzz", [f"{n:02}" for n in range(30)], f"there are {', '.join(f'{n:02}' for n in range(12))}, … (30)"),
        ("zzz", [], "there are none"),
    ],
)
def test_what_was_meant(word, known, answer):
    assert did_you_mean(word, known) == answer


def test_a_prefix_stands_before_each_name():
    assert did_you_mean("epoch", ["epochs", "lr"], "trainer.") == "did you mean trainer.epochs?"
    assert did_you_mean("zzz", ["epochs", "lr"], "trainer.") == "there are trainer.epochs, trainer.lr"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("can't allocate memory: you tried to allocate 99 bytes. Error"),
            " for 99 bytes",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has …"), " for 20.00 GiB"),
        (MemoryError(), ""),
    ],
)
def test_memory_that_is_not_there(error, words):
    with pytest.raises(UserError, match=f"^not enough memory{words}.*; take smaller batches"), limits_told():
        raise error


@pytest.mark.parametrize("error", [RuntimeError("another"), FileNotFoundError(2, "no", "file"), UserError("known")])
def test_other_errors_stay(error):
    with pytest.raises(type(error)) as raised, limits_told():
        raise error
    assert raised.value is error
