"""Write and replace files safely: a manifest lists what skipdit wrote, and only what it lists is ever deleted."""

from skipdit_cli.files.apart import check_apart, check_outside
from skipdit_cli.files.checked import digest, read_checked, write_checked
from skipdit_cli.files.lock import command_locks, hold, locked
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
from skipdit_cli.files.partial import PartialFolder, check_partial, is_partial, is_resumed
from skipdit_cli.files.target import (
    BENCH,
    CONVERT,
    DEMO,
    PLANS,
    RUN,
    SAMPLE,
    STUDY,
    SWEEP,
    check_folder,
    check_resumed,
    check_room,
)
from skipdit_cli.files.user_cache import cache_folder

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
    "STUDY",
    "SWEEP",
    "PartialFolder",
    "cache_folder",
    "check_apart",
    "check_file",
    "check_folder",
    "check_outside",
    "check_partial",
    "check_resumed",
    "check_room",
    "check_writable",
    "checksum",
    "command_locks",
    "digest",
    "fill_folder",
    "forget",
    "hold",
    "install",
    "is_partial",
    "is_resumed",
    "locked",
    "names_in",
    "note",
    "read_checked",
    "read_marker",
    "remove_listed",
    "replace_folder",
    "replacing",
    "unlisted_files",
    "work_in",
    "write_checked",
]
