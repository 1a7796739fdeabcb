"""What the user sees: a status area on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from snakemake_logger_plugin_dmdpipe.diversion import STDERR, Diversion
from snakemake_logger_plugin_dmdpipe.tracking import Job, Tracker

REFRESHES_PER_SECOND = 2
MOST_JOBS_SHOWN = 12
LOG_LINES = 15


class Display:
    """Prints lines to `stream` and, if that is a terminal, keeps a status area of the run below them.

    `progress` is the folder of the running steps' files.
    """

    def __init__(self, stream: TextIO, tracker: Tracker, progress: Path, coloured: bool):
        self.interactive = stream.isatty() and os.environ.get("TERM") != "dumb"
        # Rich alone would also take FORCE_COLOR, which CI likes to set, for a terminal.
        self._console = Console(
            file=stream, force_terminal=self.interactive, no_color=not coloured, markup=False, emoji=False
        )
        self._tracker = tracker
        self._progress = progress
        self._live: Live | None = None
        self._diversion: Diversion | None = None
        self._status: RenderableType = ""

    def start(self) -> None:
        """Show the status area, if this is a terminal."""
        if not self.interactive or self._live:
            return
        if os.isatty(STDERR):
            self._diversion = Diversion(self.line)
            self._console.file = self._diversion.terminal
        self._live = Live(
            console=self._console,
            refresh_per_second=REFRESHES_PER_SECOND,
            get_renderable=self._latest_status,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def stop(self) -> None:
        """Take the status area away."""
        diversion, self._diversion = self._diversion, None
        if diversion:
            diversion.stop()
        live, self._live = self._live, None
        if live:
            live.stop()

    def line(self, text: str, style: str = "") -> None:
        """Print text, above the status area if there is one."""
        # In a file, wrapping would cut paths and messages that people search for.
        self._console.print(Text(text, style), soft_wrap=not self.interactive)

    def _latest_status(self) -> RenderableType:
        # Raised in rich's thread, an error would be printed over the terminal and end the updates.
        with suppress(Exception):
            self._status = self._render(time.time())
        return self._status

    def _render(self, now: float) -> RenderableType:
        tracker = self._tracker
        overall = Table.grid(padding=(0, 1))
        overall.add_row(
            ProgressBar(total=max(1, tracker.total), completed=tracker.done, width=30), headline(tracker, now)
        )
        jobs = Table.grid(
            Column(style="cyan", no_wrap=True),
            Column(no_wrap=True, overflow="ellipsis"),
            Column(no_wrap=True, justify="right"),
            Column(),
            Column(no_wrap=True, justify="right"),
            padding=(0, 2),
        )
        rows = tracker.rounds(self._progress)
        for job, report, left in rows[:MOST_JOBS_SHOWN]:
            if report:
                count = f"{report.done:,}/{report.total:,}"
                bar = ProgressBar(total=max(1, report.total), completed=report.done, width=16)
                jobs.add_row(job.rule, job.label, count, bar, f"{'…' if left is None else clock(left)} left")
            else:
                jobs.add_row(job.rule, job.label, "", "", f"{clock(now - job.started)} so far")
        hidden = len(rows) - MOST_JOBS_SHOWN
        return Group(overall, jobs, *([f"… and {hidden} more"] if hidden > 0 else []))


def headline(tracker: Tracker, now: float) -> str:
    """Return `37/182 steps · 12:31 elapsed · about 08:40 left`."""
    left = tracker.seconds_left(now)
    elapsed = f"{clock(now - tracker.started if tracker.started is not None else 0).zfill(5)} elapsed"
    about = f"about {'…' if left is None else clock(left).zfill(5)} left"
    failed = [f"{len(tracker.failed)} failed"] if tracker.failed else []
    return " · ".join([f"{tracker.done}/{tracker.total} steps", elapsed, about, *failed])


def summary(tracker: Tracker, is_dry: bool, now: float) -> str:
    """Return what is said last: how far the run came or, of a dry run, the number of jobs by rule."""
    if tracker.started is None:
        return ""
    if is_dry:
        rows = [*tracker.planned.items(), ("steps to do", tracker.total)]
        return "\n".join(f"{count:6}  {name}" for name, count in rows)
    failed = f" · {len(tracker.failed)} failed" if tracker.failed else ""
    return f"{tracker.done}/{tracker.total} steps done in {in_words(now - tracker.started)}{failed}"


def clock(seconds: float) -> str:
    """Return `8:40` or, from an hour on, `1:08:40`."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def in_words(seconds: float) -> str:
    """Return `14 s`, `8 min` or `2 h 10 min`: as exact as an estimate deserves."""
    if seconds < 99.5:
        return f"{max(0, round(seconds))} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def error_block(record: Any, job: Job | None) -> str:
    """Return what to know of a failed job: rule, step, what a cluster says, command if it has one, the end of its log.

    A cluster's own log comes after the step's, and is shown where that one says nothing.
    """
    lines = [f"✗ {record.rule_name} {job.label if job else ''}".rstrip() + " failed"]
    if said := getattr(record, "rule_msg", None):
        lines.append(f"    cluster {said.strip().splitlines()[0]}")
    if record.output:
        lines.append(f"    folder  {Path(record.output[0]).parent}")
    if record.shellcmd:
        lines.append(f"    command {record.shellcmd.strip()}")
    is_told = False
    for log in record.log:
        lines.append(f"    log     {log}")
        if not is_told:
            last = last_lines(Path(log))
            lines += [f"    │ {line}" for line in last or ["(empty)"]]
            is_told = bool(last) and Path(log).exists()
    return "\n".join(lines)


def last_lines(log: Path) -> list[str]:
    """Return the last lines of a log file, none if it is empty, or a line that says why it cannot be read."""
    try:
        with log.open(errors="replace") as file:
            return [line.rstrip() for line in deque(file, LOG_LINES)]
    except OSError as error:
        return [f"({error.strerror})"]
