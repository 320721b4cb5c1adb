"""Pictures and videos out, with how they were made written into or beside them."""

from skipdit_cli.media.files import check_target
from skipdit_cli.media.history import history_file, read_metadata
from skipdit_cli.media.pictures import grid, save_npz, save_png, to_uint8
from skipdit_cli.media.video import check_video_size, contact_sheet, save_video, video_grid

__all__ = [
    "check_target",
    "check_video_size",
    "contact_sheet",
    "grid",
    "history_file",
    "read_metadata",
    "save_npz",
    "save_png",
    "save_video",
    "to_uint8",
    "video_grid",
]
