"""From the text of flags to values: prompts, lists of integers, a cache policy, arguments of a pipeline's call."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from skipdit_cli.commands.flags import short_number
from skipdit_cli.errors import UsageError
from skipdit_cli.formats import parse_yaml
from skipdit_cli.sampling.cache_settings import CacheSettings
from skipdit_cli.sampling.sample_settings import PipelineSettings, split_timesteps
from skipdit_cli.settings import flag_name

LONGEST_ARGUMENT = 100_000
"""Letters in the value of one ``--pipeline-arg``."""
MOST_VALUES = 10_000
"""Numbers and texts in one ``--pipeline-arg``, those of nested lists included."""
LARGEST_COUNT, LARGEST_NUMBER = 16_384, 2**24
"""The largest integer in a ``--pipeline-arg`` whose name says a length or a count, and in any other."""


def read_prompts(prompt: list[str] | None, prompts_file: Path | None) -> list[str] | None:
    """Return the prompts of ``--prompt`` or of ``--prompts-file``, or None where neither was given.

    Raises:
        UsageError: Both were given, a prompt is empty, or the file cannot be read.
    """
    if prompt and prompts_file is not None:
        raise UsageError("Got --prompt and --prompts-file; give one of the two.")
    if prompt:
        if not all(text.strip() for text in prompt):
            raise UsageError("Got an empty --prompt but expected a text.")
        return list(prompt)
    return None if prompts_file is None else _read_lines(prompts_file)


def _read_lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as cause:
        raise UsageError(f"Got --prompts-file {file}, which cannot be read: {cause.strerror}.") from cause
    except UnicodeDecodeError as cause:
        raise UsageError(f"Got --prompts-file {file}, which is no text in UTF-8.") from cause
    if not any(lines):
        raise UsageError(f"Got --prompts-file {file}, which holds no text; expected one prompt per line.")
    return [line for line in lines if line]


def parse_integers(text: str, flag: str) -> list[int]:
    """Parse ``"1,2,3"`` to ``[1, 2, 3]``.

    Raises:
        UsageError: An item of the list is not an integer.
    """
    try:
        return [int(part) for part in str(text).split(",") if part.strip() != ""]
    except ValueError as cause:
        raise UsageError(f"Got {flag} '{text}' but expected integers separated by commas, such as 1,2,3.") from cause


def cache_policy(settings: CacheSettings, steps: int):
    """Return the ``CachePolicy`` that the cache flags describe, or None without ``--cache`` and ``--cache-layers``.

    With a target speedup its threshold stands for one that is not known yet.

    Args:
        settings: The cache flags.
        steps: The number of denoising steps, which a level depends on.

    Raises:
        UsageError: A value is malformed, a cache flag stands beside ``--cache``, or without ``--cache-layers``.
    """
    from skipdit_cli.cache import CachePolicy
    from skipdit_cli.cache.trigger import LARGEST_THRESHOLD

    defaults = vars(CacheSettings())
    others = [name for name, value in vars(settings).items() if name != "cache" and value != defaults[name]]
    if settings.cache is not None:
        if others:
            raise UsageError(f"Got --cache together with {flag_name(others[0])}, which it sets; give one of the two.")
        return CachePolicy.level(settings.cache, steps)
    if settings.cache_layers is not None:
        (layers,) = parse_layers(settings.cache_layers, single=True)
        return CachePolicy(
            layers,
            settings.cache_interval,
            parse_window(settings.cache_window),
            parse_full_steps(settings.full_steps),
            settings.forecast,
            settings.cache_target,
            settings.forecast_damping,
            settings.forecast_axis,
            threshold=settings.cache_threshold if settings.target_speedup is None else LARGEST_THRESHOLD,
        )
    if others:
        raise UsageError(f"Got {flag_name(others[0])} without --cache-layers N, which turns the cache on.")
    return None


def parse_numbers(text: str, flag: str) -> list[float]:
    """Parse ``"0.1,0.2"`` to ``[0.1, 0.2]``.

    Raises:
        UsageError: An item of the list is not a number.
    """
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as cause:
        raise UsageError(f"Got {flag} '{text}' but expected numbers separated by commas, such as 0.1,0.2.") from cause


def parse_layers(text: str, single: bool = False) -> list[int | tuple[int, int]]:
    """Parse ``"1,2:0"`` to ``[1, (2, 0)]``: each is N, or FRONT:BACK.

    Args:
        single: Whether one depth is expected, and not a list.

    Raises:
        UsageError: An item is neither.
    """
    items = [item.strip() for item in text.split(",") if item.strip()]
    layers: list[int | tuple[int, int]] = []
    for item in items:
        try:
            numbers = tuple(int(part) for part in item.split(":"))
        except ValueError:
            numbers = ()
        if len(numbers) not in (1, 2):
            expected = "integers separated by commas, such as 1,2, or FRONT:BACK" if not single else "N, or FRONT:BACK"
            raise UsageError(f"Got --cache-layers '{text}' but expected {expected}, such as 1:0.")
        layers.append(numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1]))
    if single and len(layers) != 1:
        raise UsageError(f"Got --cache-layers '{text}' but expected one N, or FRONT:BACK, such as 1:0.")
    return layers


def parse_window(text: str | None) -> tuple[float, float] | None:
    """Parse ``"700:50"`` to ``(700.0, 50.0)``.

    Raises:
        UsageError: It is not two numbers with a colon between them.
    """
    if text is None:
        return None
    try:
        start, end = (float(part) for part in text.split(":"))
    except ValueError as cause:
        raise UsageError(f"Got --cache-window '{text}' but expected START:END, such as 700:50.") from cause
    if math.isnan(start) or math.isnan(end):
        raise UsageError(f"Got --cache-window '{text}', in which NaN is no timestep; expected such as 700:50.")
    return start, end


def parse_full_steps(text: str | None) -> int | tuple[int, ...] | None:
    """Parse ``"13"`` to 13 and ``"0,5,9"`` to ``(0, 5, 9)``.

    Raises:
        UsageError: Something else than integers is in it.
    """
    if text is None:
        return None
    numbers = parse_integers(text, "--full-steps")
    return numbers[0] if len(numbers) == 1 and "," not in text else tuple(numbers)


def parse_pipeline_arguments(texts: list[str] | None) -> dict[str, object]:
    """Parse ``["eta=0.5", "sigmas=[1, 0.5]"]`` to names and values of arguments of a pipeline's call.

    Raises:
        UsageError: See ``parse_arguments``; or an argument has a flag of its own.
    """
    from skipdit_cli.sampling.pipelines.call_arguments import check_key

    return parse_arguments(texts, "--pipeline-arg", "eta=0.5", check_key)


def parse_arguments(
    texts: list[str] | None, flag: str, example: str, check_name: Callable[[str], None] = lambda name: None
) -> dict[str, object]:
    """Parse KEY=VALUE to names and values of arguments.

    Args:
        example: One such text, for messages.
        check_name: Raises ``UsageError`` for a name that the flag cannot set.

    Raises:
        UsageError: One is not KEY=VALUE, is not YAML, is given twice, cannot be set, or is too large.
    """
    arguments = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise UsageError(f"Got {flag} '{text}' but expected KEY=VALUE, such as {example}.")
        check_name(name)
        if name in arguments:
            raise UsageError(f"Got {flag} {name} twice; give it once.")
        if len(value) > LONGEST_ARGUMENT:
            raise UsageError(f"Got {flag} {name} of {len(value)} letters but expected at most {LONGEST_ARGUMENT}.")
        arguments[name] = parse_yaml(value, f"Got {flag} '{text[:200]}', whose value")
        _check_argument(f"{flag} {name}", name, arguments[name])
    return arguments


def _check_argument(what: str, name: str, value: object) -> None:
    """Refuse the value of an argument that is not plain data, or larger than a run can use."""
    counts = any(word in name for word in ("length", "num_", "frames", "size"))
    most = LARGEST_COUNT if counts else LARGEST_NUMBER
    pending, count = [value], 0
    while pending:
        item = pending.pop()
        count += 1
        if isinstance(item, (list, tuple, dict)):
            pending += item.values() if isinstance(item, dict) else item
        elif isinstance(item, int) and abs(item) > most:
            raise UsageError(f"Got {what}={short_number(item)} but expected at most {most}.")
        elif isinstance(item, float) and not math.isfinite(item):
            raise UsageError(f"Got {what}={item} but expected finite numbers.")
        elif not isinstance(item, (str, bool, int, float, type(None))):
            kind = type(item).__name__
            raise UsageError(f"Got {what} with a {kind} in it; expected numbers, texts and lists.")
        if count > MOST_VALUES or len(pending) > MOST_VALUES:
            raise UsageError(f"Got {what} with more than {MOST_VALUES} values in it; leave it out.")


def read_inputs(settings: PipelineSettings) -> dict[str, object]:
    """Return the sampler, the image and the further arguments of a pipeline's call, as ``sampling.generate`` takes
    them.

    Raises:
        UsageError: An argument, the image or the sampler cannot be read.
    """
    return {
        "arguments": parse_pipeline_arguments(settings.pipeline_arg),
        "image": read_image(settings.image),
        "scheduler": read_sampler(settings),
    }


def read_sampler(settings: PipelineSettings):
    """Return the ``Sampler`` that the scheduler flags describe.

    Raises:
        UsageError: A value is malformed, or two of them exclude each other.
    """
    from skipdit_cli.sampling.schedulers.sampler import Sampler

    arguments = parse_arguments(settings.scheduler_arg, "--scheduler-arg", "solver_order=3")
    return Sampler(settings.scheduler, settings.scheduler_spacing, arguments, parse_timesteps(settings.timesteps))


def parse_timesteps(text: str | None) -> list[float] | None:
    """Parse ``"999,850.5"`` to ``[999.0, 850.5]``.

    Raises:
        UsageError: An item is not a number, or there are too many.
    """
    if text is None:
        return None
    parts = split_timesteps(text)
    if len(parts) > MOST_VALUES:
        raise UsageError(f"Got {len(parts)} --timesteps but expected at most {MOST_VALUES}.")
    try:
        return [float(part) for part in parts]
    except ValueError as cause:
        raise UsageError(
            f"Got --timesteps '{text[:200]}' but expected numbers separated by commas, such as 999,850,600,300."
        ) from cause


def read_image(file: Path | None):
    """Return the image of ``--image`` in RGB and upright, or None without one.

    Raises:
        UsageError: The file is missing or is not an image.
    """
    from skipdit_cli.media import read_picture

    return None if file is None else read_picture(file).convert("RGB")
