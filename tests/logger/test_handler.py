"""The handler alone: Snakemake's own conformance tests, the texts, and that nothing it meets is fatal."""

from __future__ import annotations

import io
import logging
import queue
from logging.handlers import QueueListener
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from snakemake.logging import DefaultFormatter
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry
from snakemake_interface_logger_plugins.tests import MockOutputSettings, TestLogHandlerBase

from snakemake_logger_plugin_dmdpipe import LogHandler, LogHandlerSettings
from snakemake_logger_plugin_dmdpipe.display import clock, error_block, headline, in_words, summary
from snakemake_logger_plugin_dmdpipe.tracking import Job, Tracker

if TYPE_CHECKING:
    from snakemake_interface_logger_plugins.base import LogHandlerBase
    from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase


class TestConformance(TestLogHandlerBase):
    __test__ = True

    def get_log_handler_cls(self) -> type[LogHandlerBase]:
        return LogHandler

    def get_log_handler_settings(self) -> LogHandlerSettingsBase:
        return LogHandlerSettings()


def make_handler(monkeypatch: pytest.MonkeyPatch, is_terminal: bool = False, **common: Any) -> Any:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    monkeypatch.setattr("sys.stderr", stream)
    settings = MockOutputSettings()
    for name, value in common.items():
        setattr(settings, name, value)
    handler = LogHandler(settings, LogHandlerSettings(results=Path("nowhere")))
    handler.setFormatter(DefaultFormatter())
    return handler, stream


def send(handler: LogHandler, message: str = "", level: int = logging.INFO, **fields: Any) -> None:
    record = logging.LogRecord("snakemake", level, "", 0, message, (), None)
    record.__dict__.update(fields)
    handler.emit(record)


def test_snakemake_finds_the_plugin() -> None:
    assert LoggerPluginRegistry().is_installed("dmdpipe")


def test_results_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMDPIPE_RESULTS", "elsewhere")
    assert LogHandlerSettings().results == Path("elsewhere")
    monkeypatch.delenv("DMDPIPE_RESULTS")
    assert LogHandlerSettings().results == Path("results")


@pytest.mark.parametrize("message", ["Restored previous version", "100% of [bold]this[/bold] :smile:"])
def test_messages_pass_as_they_are(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    handler, stream = make_handler(monkeypatch)
    send(handler, message * 20, logging.WARNING)
    assert stream.getvalue() == message * 20 + "\n"


def test_quiet_keeps_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    handler, stream = make_handler(monkeypatch, quiet={Quietness.ALL})
    send(handler, "chat")
    send(handler, "trouble", logging.ERROR)
    assert stream.getvalue() == "trouble\n"


def test_an_error_inside_is_said_once_and_snakemakes_lines_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    handler, stream = make_handler(monkeypatch)
    send(handler, "first", event=LogEvent.RUN_INFO)  # without the stats that the handler needs
    send(handler, "second", logging.ERROR)
    handler.close()
    text = stream.getvalue()
    assert text.count("no progress display from here on: AttributeError") == 1
    assert text.endswith("first\nsecond\n")


def test_snakemakes_listener_outlives_an_error_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    handler, stream = make_handler(monkeypatch)
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = QueueListener(records, handler)
    listener.start()
    for message, event in (("first", LogEvent.JOB_FINISHED), ("second", None)):
        record = logging.makeLogRecord({"msg": message, "event": event, "levelno": logging.ERROR})
        records.put(record)
    listener.stop()
    assert stream.getvalue().endswith("second\n")


def test_a_closed_stream_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    handler, stream = make_handler(monkeypatch)
    stream.close()
    send(handler, "trouble", logging.ERROR)
    handler.close()


def test_colours_forced_in_ci_make_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    handler, stream = make_handler(monkeypatch)
    send(handler, event=LogEvent.RUN_INFO, stats={"teacher": 1, "total": 1})
    send(handler, "careful", logging.WARNING)
    handler.close()
    assert "\x1b" not in stream.getvalue()


def test_the_terminal_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    handler, stream = make_handler(monkeypatch, is_terminal=True)
    send(handler, event=LogEvent.RUN_INFO, stats={"teacher": 2, "total": 2})
    send(handler, "careful", logging.WARNING)
    handler.close()
    handler.close()
    text = stream.getvalue()
    hidden, shown = text.rfind("\x1b[?25l"), text.rfind("\x1b[?25h")
    assert 0 <= hidden < shown
    assert text.count("0/2 steps done in 0 s") == 1


def test_clock_and_words() -> None:
    assert [clock(s) for s in (0, 12.4, 520, 4120)] == ["0:00", "0:12", "8:40", "1:08:40"]
    assert [in_words(s) for s in (0.2, 14, 480, 7800)] == ["0 s", "14 s", "8 min", "2 h 10 min"]


def test_headline_and_summary() -> None:
    tracker = Tracker(cores=1, started=0.0, planned={"teacher": 3})
    assert headline(tracker, 751.0) == "0/3 steps · 12:31 elapsed · about … left"
    tracker.start(1, Job("teacher", "", "", 0.0))
    tracker.finish(1, 260.0)
    assert headline(tracker, 751.0) == "1/3 steps · 12:31 elapsed · about 08:40 left"
    tracker.fail(2)
    assert summary(tracker, False, 751.0) == "1/3 steps done in 13 min · 1 failed"
    assert summary(tracker, True, 751.0) == "     3  teacher\n     3  steps to do"
    assert summary(Tracker(), False, 751.0) == ""


def test_error_block_ends_with_the_log(tmp_path: Path) -> None:
    log = tmp_path / "teacher.log"
    log.write_text("".join(f"line {i}\n" for i in range(40)))
    record = SimpleNamespace(
        rule_name="teacher",
        output=["results/teachers/x/manifest.json"],
        shellcmd=None,
        log=[str(log), "gone.log"],
    )
    lines = error_block(record, Job("teacher", "digits", "", 0.0)).splitlines()
    assert lines[:3] == ["✗ teacher digits failed", "    folder  results/teachers/x", f"    log     {log}"]
    assert lines[3:18] == [f"    │ line {i}" for i in range(25, 40)]
    assert lines[18:] == ["    log     gone.log"]


def test_error_block_says_what_a_cluster_says_and_shows_its_log_where_the_steps_own_is_silent(tmp_path: Path) -> None:
    own, clusters = tmp_path / "own.log", tmp_path / "7.log"
    clusters.write_text("srun: error\n")
    record = SimpleNamespace(
        rule_name="noise", rule_msg="job 7: TIMEOUT\n  more", output=[], shellcmd=None, log=[str(own), str(clusters)]
    )
    ending = [f"    log     {clusters}", "    │ srun: error"]
    for text, shown in (
        (None, ["(No such file or directory)", *ending]),
        ("", ["(empty)", *ending]),
        ("bad\n", ["bad"]),
    ):
        if text is not None:
            own.write_text(text)
        lines = error_block(record, None).splitlines()
        assert lines[:3] == ["✗ noise failed", "    cluster job 7: TIMEOUT", f"    log     {own}"]
        assert lines[3] == f"    │ {shown[0]}"
        assert lines[4:] == (shown[1:] or ending[:1])
