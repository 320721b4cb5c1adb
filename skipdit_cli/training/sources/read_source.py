"""Read the data source that ``--data`` names."""

from __future__ import annotations

from skipdit_cli.errors import UsageError
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.data.samples import SampleSet, read_samples
from skipdit_cli.training.data_settings import DataSettings
from skipdit_cli.training.data_source import HUB, SHARDS, parse_data
from skipdit_cli.training.observer import SILENT, Observer
from skipdit_cli.training.sources.hub_datasets import read_hub_dataset
from skipdit_cli.training.sources.packed_pictures import Columns
from skipdit_cli.training.sources.shards import read_shards


def read_source(settings: DataSettings, demand: Demand, span: int = 1, observer: Observer = SILENT) -> SampleSet:
    """Return the samples of the data source of a run or of ``skipdit prepare``.

    Args:
        demand: What the model requires of the data.
        span: The number of frames from the first of a clip to its last.
    Raises:
        UsageError: There is nothing to read, or it is not what the model requires.
    """
    source = parse_data(str(settings.data))
    if source.kind not in (HUB, SHARDS):
        return read_samples(str(settings.data), demand, span, settings.fps_target, settings.allow_outside, observer)
    if demand.video_length is not None:
        raise UsageError(
            f"Got --data {settings.data}, which holds images, but the model is trained on videos; give a folder."
        )
    columns = Columns(settings.image_column, settings.caption_column, settings.label_column)
    if source.kind == SHARDS:
        return read_shards(source, demand, columns, observer)
    return read_hub_dataset(source, demand, columns, settings.dataset_config_name, settings.allow_outside, observer)
