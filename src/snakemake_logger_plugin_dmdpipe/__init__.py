"""Snakemake's logger plugin `dmdpipe`: how far a run is, how long it still takes, and what went wrong."""

import logging
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase

if TYPE_CHECKING:
    from snakemake_logger_plugin_dmdpipe.display import Display

# Said by Snakemake in every run, and by the display better or not worth a line.
CHATTER = (
    "Assuming unrestricted shared filesystem usage",
    "Cleaning up SLURM log files",
    "Elapsed time:",
    "Execute ",
    "SLURM run ID",
    "Select jobs to execute",
    "Some jobs were triggered by provenance information",
    "This was a dry-run",
    "Using shell:",
)
# Events that feed the display and are not printed as they come.
SILENT = {
    LogEvent.WORKFLOW_STARTED,
    LogEvent.JOB_STARTED,
    LogEvent.RESOURCES_INFO,
    LogEvent.PROGRESS,
    LogEvent.RULEGRAPH,
    LogEvent.GROUP_INFO,
}


# Snakemake reads the fields' types: no postponed annotations here.
@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):
    """Options of the plugin, as --logger-dmdpipe-… on Snakemake's command line."""

    results: Path = field(
        default_factory=lambda: Path(os.environ.get("DMDPIPE_RESULTS") or "results"),
        metadata={"help": "Folder of the results, whose .progress/ the running steps write to."},
    )


class LogHandler(LogHandlerBase):
    """Turns Snakemake's events into the display; whatever goes wrong here, the run goes on."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = False
    needs_rulegraph = False

    def __post_init__(self) -> None:
        """Prepare an empty display."""
        # Here, since Snakemake imports this package in every job's process.
        from snakemake_logger_plugin_dmdpipe.display import Display
        from snakemake_logger_plugin_dmdpipe.tracking import Tracker

        settings = self.settings if isinstance(self.settings, LogHandlerSettings) else LogHandlerSettings()
        common = self.common_settings
        quiet = {choice.name for choice in common.quiet or ()}
        self._is_quiet = bool(quiet & {"ALL", "PROGRESS"})
        self._stream = sys.stdout if common.stdout else sys.stderr
        self._progress = settings.results / ".progress"
        self._tracker = Tracker()
        self._reasons: dict[str, str] = {}
        self._display: Display | None = Display(
            self._stream, self._tracker, self._progress, coloured=not common.nocolor
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record. Never raises: after an error, records are printed as Snakemake formats them."""
        try:
            if self._display is None:
                print(self.format(record), file=self._stream, flush=True)
            else:
                self._handle(record, self._display)
        except (Exception, SystemExit) as error:  # rich leaves by SystemExit when its pipe is closed
            self._give_up(error, record)

    def close(self) -> None:
        """Take the status area away and say in one line how far the run came."""
        display, self._display = self._display, None
        with suppress(Exception, SystemExit):
            if display:
                from snakemake_logger_plugin_dmdpipe.display import summary

                display.stop()
                if last := summary(self._tracker, self.common_settings.dryrun, time.time()):
                    display.line(last)
        super().close()

    def _handle(self, record: Any, display: "Display") -> None:
        """Update the tracker from one record, and print what is worth a line."""
        from snakemake_logger_plugin_dmdpipe.display import error_block, in_words
        from snakemake_logger_plugin_dmdpipe.tracking import (
            FAILURES,
            LAST_RUN,
            LOOK,
            Failure,
            make_job,
            read_prior,
            read_reasons,
            write_failures,
        )

        tracker, event, is_dry = self._tracker, getattr(record, "event", None), self.common_settings.dryrun
        if event == LogEvent.RESOURCES_INFO:
            tracker.cores = getattr(record, "cores", tracker.cores)
        elif event == LogEvent.RUN_INFO:
            tracker.planned = {rule: count for rule, count in record.stats.items() if rule != "total"}
            plan = self._progress / (LOOK if is_dry else LAST_RUN)
            tracker.prior, self._reasons = read_prior(plan), read_reasons(plan)
            tracker.started = tracker.started or record.created
            if not (is_dry or self._is_quiet):
                display.start()
        elif event == LogEvent.JOB_INFO:
            job = make_job(record.rule_name, record.wildcards or {}, record.output, record.created)
            if is_dry:
                named = (self._reasons[path] for path in record.output if path in self._reasons)
                reason = next(named, record.reason.partition(":")[0].lower())
                display.line(f"{job.rule} {job.label}".rstrip() + f"  ({reason})")
            else:
                tracker.start(record.jobid, job)
        elif event == LogEvent.JOB_FINISHED:
            finished = tracker.finish(record.job_id, record.created)
            if finished and not (display.interactive or self._is_quiet):
                job, seconds = finished
                left = tracker.seconds_left(record.created)
                about = "" if tracker.done >= tracker.total else f" · about {in_words(left or 0)} left"
                steps = f"[{tracker.done}/{tracker.total}] {job.rule} {job.label}".rstrip()
                display.line(f"{steps} done in {in_words(seconds)}{about}")
        elif event == LogEvent.JOB_ERROR:
            display.line(error_block(record, tracker.fail(record.jobid)), "red")
            if record.output:
                why = (getattr(record, "rule_msg", None) or "").strip().partition("\n")[0]
                tracker.failures[str(record.output[0])] = Failure(record.created, why)
                with suppress(OSError):
                    write_failures(self._progress / FAILURES, tracker.failures)
        elif event not in SILENT and self._is_worth_a_line(record, event):
            display.line(self.format(record), {"WARNING": "yellow", "ERROR": "red"}.get(record.levelname, ""))

    def _is_worth_a_line(self, record: logging.LogRecord, event: LogEvent | None) -> bool:
        common, message = self.common_settings, record.getMessage()
        if "CalledProcessError" in message and getattr(record, "exception", "") == "RuleException":
            return False  # the job's own error follows and says more
        if event == LogEvent.DEBUG_DAG:
            return common.debug_dag
        if event == LogEvent.SHELLCMD:
            return common.printshellcmds
        if record.levelno < logging.INFO:
            return common.verbose
        if record.levelno == logging.INFO:
            return not (self._is_quiet or message in ("", "None") or message.startswith(CHATTER))
        return True

    def _give_up(self, error: BaseException, record: logging.LogRecord) -> None:
        display, self._display = self._display, None
        with suppress(Exception, SystemExit):
            if display:
                display.stop()
        with suppress(Exception):
            if display:
                print(f"dmdpipe: no progress display from here on: {error!r}", file=self._stream, flush=True)
                self.emit(record)
