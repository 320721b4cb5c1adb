"""The report of a study: its findings as an HTML page, and as one JSON object."""

from __future__ import annotations

import datetime
import shlex
from typing import Any

from skipdit_cli.reports import Command, Report
from skipdit_cli.studies.study import Findings
from skipdit_cli.studies.study_run import StudyRun
from skipdit_cli.version import list_versions


def make_record(run: StudyRun, findings: Findings, preset: str, environment: dict[str, Any]) -> dict[str, Any]:
    """Return all that a study found and what it depends on, as JSON.

    Args:
        preset: The name of the preset with its settings.
        environment: The device, the versions and the date, as ``bench --json`` has them.
    """
    return {
        "study": run.study.name,
        "preset": preset,
        "claim": run.study.claim,
        "lead": findings.lead,
        "details": list(findings.details),
        "seeds": list(run.seeds),
        "settings": vars(run.settings),
        "numbers": findings.numbers,
        "warnings": list(findings.warnings),
        "commands": [shlex.join(["skipdit", *run.words(name)]) for name in run.lines],
        "seconds": round(run.seconds(), 1),
        **environment,
    }


def make_report(run: StudyRun, findings: Findings, record: dict[str, Any], command: str) -> Report:
    """Return the HTML report of a study.

    Args:
        record: The object of ``make_record``.
        command: The command line that ran the study.
    """
    seeds = f"{len(run.seeds)} training seeds" if len(run.seeds) > 1 else "1 training seed, so nothing says the spread"
    return Report(
        title=f"skipdit study {run.study.name}: {run.study.summary}",
        subtitle=f"{record['preset']}, {seeds}, {record['device_name']}, {record['date'][:10]}",
        lead=findings.lead,
        details=[*findings.details, f"The claim: {run.study.claim}"],
        warnings=findings.warnings,
        comparison=findings.comparison,
        plots=findings.plots,
        tables=findings.tables,
        curves=findings.curves,
        maps=findings.maps,
        commands=[
            Command(command, "Run the whole study again."),
            *(Command(line, f"Make {name}.") for line, name in zip(record["commands"], run.lines)),
        ],
        facts={
            "Settings": ", ".join(f"{name} {_shown(value)}" for name, value in record["settings"].items()),
            "Machine": f"{record['device_name']} ({record['device']})",
            "Time": f"{datetime.timedelta(seconds=round(record['seconds']))} for all parts, one after the other",
            "Date": record["date"],
            "Versions": list_versions(record["versions"]),
        },
        notes=findings.notes,
    )


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
