"""Settings of a command: frozen dataclasses, each of whose fields says all that the command needs to know of it."""

from __future__ import annotations

from dataclasses import field


def setting(
    default,
    help: str,
    panel: str | None = None,
    *,
    names: tuple[str, ...] = (),
    metavar: str | None = None,
    minimum: float | None = None,
    recorded: bool = False,
    run: bool = False,
):
    """Declare a field of a settings dataclass, from which ``commands/flags.py`` makes a flag.

    Args:
        help: What ``--help`` says of the flag.
        panel: The group of flags in ``--help`` that it belongs to.
        names: How the flag is typed, where that is not the field's own name: ``("-o", "--output")``.
        metavar: What ``--help`` shows in the place of the value.
        minimum: The smallest number allowed.
        recorded: Whether a picture's history records it, so that ``sample --from`` takes it from there.
        run: Whether the run itself (``sampling.generate``) gets it under the field's name.
    """
    metadata = {"help": help, "panel": panel, "names": names, "metavar": metavar, "minimum": minimum}
    return field(default=default, metadata={**metadata, "recorded": recorded, "run": run})
