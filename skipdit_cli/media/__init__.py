"""Read and write images and videos; each written file carries its metadata, or has it in a JSON file beside it."""

from skipdit_cli.media.arrays import ArrayFile, save_npz
from skipdit_cli.media.history import history_file, read_metadata
from skipdit_cli.media.intake import decode_picture, read_picture
from skipdit_cli.media.names import VIDEO_SUFFIXES, is_frame, is_hidden, is_picture, is_video
from skipdit_cli.media.pictures import grid, save_picture, save_png, to_uint8
from skipdit_cli.media.reading import VideoFacts, frame_files, frame_times, is_frame_folder, probe_video, read_video
from skipdit_cli.media.sound import Sound, save_wav
from skipdit_cli.media.titles import add_titles
from skipdit_cli.media.video import check_video_size, contact_sheet, save_video, video_grid

__all__ = [
    "VIDEO_SUFFIXES",
    "ArrayFile",
    "Sound",
    "VideoFacts",
    "add_titles",
    "check_video_size",
    "contact_sheet",
    "decode_picture",
    "frame_files",
    "frame_times",
    "grid",
    "history_file",
    "is_frame",
    "is_frame_folder",
    "is_hidden",
    "is_picture",
    "is_video",
    "probe_video",
    "read_metadata",
    "read_picture",
    "read_video",
    "save_npz",
    "save_picture",
    "save_png",
    "save_video",
    "save_wav",
    "to_uint8",
    "video_grid",
]
