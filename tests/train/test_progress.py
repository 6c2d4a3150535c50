"""Progress says losses, speed, share of waiting and time left, live or as plain lines."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from medssl.train.progress import ProgressDisplay, counting, describe


def test_the_line_holds_everything() -> None:
    line = describe({"loss": 0.31234, "inpainting": 1.0}, 12.345, 0.014, 3725.2)
    assert line == "loss 0.3123 inpainting 1 | 12.3 samples/s | 1% waiting for data | 1:02:05 left"


def test_plain_lines_where_there_is_no_terminal_few_and_the_last() -> None:
    out = io.StringIO()
    with ProgressDisplay("pretrain", 50, console=Console(file=out, width=40)) as display:
        for step in range(1, 51):
            display.step(step, {"loss": 1 / step}, 5.0, 0.0)
        display.say("[not] markup")
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("pretrain step 1/50 loss 1 ")
    assert lines[1].startswith("pretrain step 50/50 loss 0.02 ")
    assert lines[2:] == ["[not] markup"]


def test_a_bar_on_a_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with ProgressDisplay("pretrain", 4, first=2, console=console) as display:
        display.step(4, {"loss": 0.5}, 5.0, 0.25)
    assert "4/4" in out.getvalue() and "25% waiting" in out.getvalue()


def test_nothing_is_written_to_standard_output(capsys: object) -> None:
    with ProgressDisplay("pretrain", 1) as display:
        display.step(1, {"loss": 0.5}, 5.0, 0.25)
    captured = capsys.readouterr()  # type: ignore[attr-defined]
    assert captured.out == "" and "loss 0.5" in captured.err


def test_counting_is_a_bar_on_a_terminal_and_a_line_now_and_then_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(seconds: float, terminal: bool = False) -> str:
        monkeypatch.setattr("medssl.train.progress.QUIET_SECONDS", seconds)
        out = io.StringIO()
        with counting("looking at cases", Console(file=out, force_terminal=terminal, width=80)) as report:
            report(1, 3)
            report(2, 3)
        return out.getvalue()

    assert shown(1e9) == ""
    lines = shown(0).splitlines()
    assert [line[:23] for line in lines] == ["looking at cases 1/3 | ", "looking at cases 2/3 | "]
    assert all(line.endswith("0:00:00 left") for line in lines)
    assert "2/3" in shown(0, terminal=True)


def test_without_verbose_the_logger_alone_hears_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("medssl.train.progress.QUIET_SECONDS", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with caplog.at_level("INFO", "medssl.train"):
        with counting("looking at cases", verbose=False) as report:
            report(1, 3)
        with ProgressDisplay("pretrain", 1, verbose=False) as display:
            display.step(1, {"loss": 0.5}, 5.0, 0.25)
    assert [line[:20] for line in caplog.messages] == ["looking at cases 1/3", "pretrain step 1/1 lo"]
    assert capsys.readouterr() == ("", "")


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(5, "the terminal is gone")


@pytest.mark.parametrize("terminal", [True, False])
def test_counting_goes_on_where_nobody_reads(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setattr("medssl.train.progress.QUIET_SECONDS", 0)
    with counting("looking at cases", Console(file=Gone(), force_terminal=terminal)) as report:
        report(1, 2)
        report(2, 2)
