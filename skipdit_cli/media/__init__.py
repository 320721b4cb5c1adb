"""Pictures and videos in and out; what is written comes with how it was made, in it or beside it."""

from skipdit_cli.media.history import history_file, read_metadata
from skipdit_cli.media.pictures import grid, save_npz, save_png, to_uint8
from skipdit_cli.media.reading import VIDEO_SUFFIXES, VideoFacts, frame_files, is_frame_folder, probe_video, read_video
from skipdit_cli.media.sound import Sound, save_wav
from skipdit_cli.media.video import check_video_size, contact_sheet, save_video, video_grid

__all__ = [
    "VIDEO_SUFFIXES",
    "Sound",
    "VideoFacts",
    "check_video_size",
    "contact_sheet",
    "frame_files",
    "grid",
    "history_file",
    "is_frame_folder",
    "probe_video",
    "read_metadata",
    "read_video",
    "save_npz",
    "save_png",
    "save_video",
    "save_wav",
    "to_uint8",
    "video_grid",
]
