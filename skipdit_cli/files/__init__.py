"""Write and replace files safely: a manifest lists what skipdit wrote, and only what it lists is ever deleted."""

from skipdit_cli.files.apart import check_apart, check_outside
from skipdit_cli.files.marker import (
    FINISHED,
    MARKER,
    RESUMABLE,
    forget,
    names_in,
    note,
    read_marker,
    remove_listed,
    unlisted_files,
)
from skipdit_cli.files.one import check_file, check_writable, checksum, replacing
from skipdit_cli.files.output import fill_folder, install, replace_folder, work_in
from skipdit_cli.files.partial import PartialFolder, is_partial, read_partial
from skipdit_cli.files.target import (
    BENCH,
    CONVERT,
    DEMO,
    PLANS,
    RUN,
    SAMPLE,
    SWEEP,
    check_folder,
    check_resumed,
    check_room,
)

__all__ = [
    "BENCH",
    "CONVERT",
    "DEMO",
    "FINISHED",
    "MARKER",
    "PLANS",
    "RESUMABLE",
    "RUN",
    "SAMPLE",
    "SWEEP",
    "PartialFolder",
    "check_apart",
    "check_file",
    "check_folder",
    "check_outside",
    "check_resumed",
    "check_room",
    "check_writable",
    "checksum",
    "fill_folder",
    "forget",
    "install",
    "is_partial",
    "names_in",
    "note",
    "read_marker",
    "read_partial",
    "remove_listed",
    "replace_folder",
    "replacing",
    "unlisted_files",
    "work_in",
]
