"""The splits of the embedded data sets: disjoint, and together the whole set."""

import pytest

from skipdit_cli.errors import UsageError
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.data.moving_digits import scans
from skipdit_cli.training.data.samples import read_samples
from skipdit_cli.training.data_source import parse_data


@pytest.mark.parametrize("name", ["digits", "moving-digits"])
def test_a_split_holds_every_fifth_scan_with_all_its_videos(name):
    demand = Demand(num_classes=10, video_length=None if name == "digits" else 8)
    whole, train, test = (read_samples(source, demand) for source in (name, f"{name}:train", f"{name}:test"))
    names = [{samples.digest(i) for i in range(len(samples))} for samples in (whole, train, test)]
    assert names[1] | names[2] == names[0] and not names[1] & names[2]
    scan_numbers = [{int(each.rpartition("-")[2]) % len(scans()[0]) for each in part} for part in names[1:]]
    assert not scan_numbers[0] & scan_numbers[1] and len(scan_numbers[1]) == len(scans()[0]) // 5
    first = int(test.digest(0).rpartition("-")[2])
    assert (
        test.conditions[0] == scans()[1][first]
        and test.read(0, [0])[0].tobytes() == whole.read(first, [0])[0].tobytes()
    )


def test_an_unknown_split_is_refused():
    with pytest.raises(UsageError, match="digits has the splits train and test"):
        parse_data("digits:valid")
