"""The sound that some pipelines of videos make (LTX-2, Kandinsky 6): the second of what their call returns."""

from __future__ import annotations

import numpy as np

from skipdit_cli.media import Sound


def sounds_of(pipe, result: tuple) -> list[Sound]:
    """One a video, out of what a call with ``return_dict=False`` returned; none of a pipeline that makes none.

    What has a vocoder makes sound: (B, samples) or (B, channels, samples), of a rate that the vocoder's config tells
    (LTX-2) or the pipeline (Kandinsky 6).
    """
    vocoder = getattr(pipe, "vocoder", None)
    if vocoder is None or len(result) < 2 or result[1] is None:
        return []
    rate = vocoder.config.get("output_sampling_rate") or pipe.audio_sample_rate
    waves = result[1] if isinstance(result[1], np.ndarray) else result[1].float().cpu().numpy()
    return [Sound(np.atleast_2d(wave).astype(np.float32), int(rate)) for wave in waves]
