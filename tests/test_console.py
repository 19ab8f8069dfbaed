import io
import warnings

import pytest
from rich.console import Console

from whtnet import apply_policy_, console
from whtnet.backbones import build_backbone
from whtnet.errors import UserError


@pytest.fixture
def screen(monkeypatch):
    """What is printed, on a terminal or into a file."""

    def make(terminal):
        buffer = io.StringIO()
        for name in ("console", "error_console"):
            options = {"file": buffer, "force_terminal": terminal, "width": 160, "markup": False}
            monkeypatch.setattr(console, name, Console(**options))
        return buffer

    return make


def test_bars_on_a_terminal(screen):
    out = screen(terminal=True)
    with console.ProgressView("table", 2) as view:
        for name in ("first", "second"):
            task = view.task(name)
            task(0.5, "epoch 1/2")
            view._bars.refresh()
            task.finish()
    for word in ("table", "first", "second", "epoch 1/2", "100 %"):
        assert word in out.getvalue()


def test_steps_fill_a_bar(screen):
    out = screen(terminal=True)
    with console.ProgressView() as view:
        on_step = view.steps("counting", 4)
        for row in ("first", "second"):
            on_step(row)
        view._bars.refresh()
    for word in ("counting", "second", "50 %"):
        assert word in out.getvalue()


def test_lines_in_a_file(screen, monkeypatch):
    out = screen(terminal=False)
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.ProgressView("table", 3) as view:
        task = view.task("row a, seed 0")
        for step in range(100):
            now[0] += 1
            task(step / 100, "epoch 1/5")
    lines = out.getvalue().splitlines()
    assert len(lines) == 3  # one every 30 seconds
    assert lines[0] == "[0 of 3 done, 5 min left] row a, seed 0: 30%, epoch 1/5"


EPOCH = {"train_loss": 1.23456, "train_top1": 55.4, "lr": 0.0123456, "images_per_s": 8123.4, "seconds": 9.0}


def test_a_line_for_an_epoch():
    metrics = EPOCH | {"epoch": 3, "test_top1": 57.1, "holdout_top1": 56.0}
    assert console.epoch_line(metrics, 15, 700.0) == (
        "epoch  3/15, loss 1.2346, train 55.40 %, held out 56.00 %, test 57.10 %, lr 0.0123, 8,123 images/s, "
        "12 min left"
    )
    assert console.epoch_line(EPOCH | {"epoch": 15}, 15, 0.0).endswith("train 55.40 %, lr 0.0123, 8,123 images/s")
    assert console.epoch_line(EPOCH | {"epoch": 1}, 15, 45.2).endswith(", 45 s left")
    assert console.epoch_line(EPOCH | {"epoch": 1}, 15, 3 * 3600).endswith(", 3.0 h left")


def test_lines_of_epochs_tell_the_time_left_of_those_that_were_seen(screen, monkeypatch):
    out = screen(terminal=False)
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    lines = console.EpochLines(5)
    lines(EPOCH | {"epoch": 3})  # a resumed run: 9 seconds, two epochs to go
    now[0] += 11.0  # evaluation included
    lines(EPOCH | {"epoch": 4})
    lines(EPOCH | {"epoch": 5})
    assert [line.rsplit(", ", 1)[1] for line in out.getvalue().splitlines()] == [
        "18 s left",
        "10 s left",
        "8,123 images/s",
    ]


def test_several_tasks_at_once_share_a_line(screen, monkeypatch):
    out = screen(terminal=False)
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.ProgressView("table", 4) as view:
        first, second = view.task("a"), view.task("b")
        second(1.0, "epoch 5/5")
        second.finish()
        third = view.task("c")
        third(0.5, "epoch 3/5")
        now[0] = 120.0
        first(0.5, "epoch 2/5")
    assert out.getvalue() == "[1 of 4 done, 2 min left] a: 50%, epoch 2/5; c: 50%, epoch 3/5\n"


def test_the_report_shows_sites_and_totals(screen):
    out = screen(terminal=False)
    console.print_report(apply_policy_(build_backbone("resnet20"), "paper"))
    text = out.getvalue()
    assert "layer2.0.shortcut.0" in text
    assert "544 → 32" in text
    assert "273,066" in text
    assert "133,082" in text
    assert "-51.3%" in text


@pytest.mark.parametrize(
    ("error", "status", "words"), [(UserError("do this"), 1, "do this"), (KeyboardInterrupt(), 130, "interrupted\n")]
)
def test_mendable_errors_become_messages(screen, error, status, words):
    out = screen(terminal=False)

    @console.exit_on_user_error
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == status
    assert words in out.getvalue()


def test_other_errors_keep_their_traceback():
    @console.exit_on_user_error
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


def test_warnings_are_lines_without_a_place_in_the_code(screen):
    out = screen(terminal=False)

    @console.exit_on_user_error
    def main():
        warnings.warn("first [x]\n  and second", RuntimeWarning, stacklevel=1)

    before = warnings.showwarning
    main()
    assert out.getvalue() == "warning: first [x] and second\n"
    assert warnings.showwarning is before


def test_names_are_shown_as_they_are(screen):
    out = screen(terminal=True)
    with console.ProgressView("table [red]", 1) as view:
        view.task("row [/x]")(0.5, "[bold]")
        view._bars.refresh()
    for name in ("table [red]", "row [/x]", "[bold]"):
        assert name in out.getvalue()
    assert not console.console._markup
