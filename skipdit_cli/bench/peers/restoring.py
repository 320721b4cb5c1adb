"""A pipeline as it was: a record of its modules and classes, to which they return after a peer ran."""

from __future__ import annotations

from skipdit_cli.families.pipeline_parts import transformers_of


class Snapshot:
    """The attributes of a pipeline, of its transformers with all their modules, and of their classes.

    Peers replace ``forward`` on modules, register modules and hooks, and set attributes; cache-dit also replaces
    ``__call__`` of the pipeline's class.
    """

    def __init__(self, pipe):
        transformers = list(transformers_of(pipe).values())
        modules = [module for transformer in transformers for module in transformer.modules()]
        classes = dict.fromkeys([type(pipe), *map(type, transformers)])
        self.classes = [(kind, dict(vars(kind))) for kind in classes]
        self.instances = [(each, dict(vars(each))) for each in dict.fromkeys([pipe, *modules])]
        contents = [value for _, attributes in self.instances for value in attributes.values()]
        self.dictionaries = [(value, dict(value)) for value in contents if isinstance(value, dict)]

    def hooked(self) -> bool:
        """Return whether anything now replaces a forward, or a call of a pipeline, that did not before."""
        calls = [(vars(each).get("forward"), before.get("forward")) for each, before in self.instances]
        calls += [(vars(kind).get("__call__"), before.get("__call__")) for kind, before in self.classes]
        return any(now is not before for now, before in calls)

    def restore(self) -> None:
        """Give every object the attributes that it had."""
        for each, before in self.instances:
            if not _same(vars(each), before):
                vars(each).clear()
                vars(each).update(before)
        for dictionary, before in self.dictionaries:
            if not _same(dictionary, before):
                dictionary.clear()
                dictionary.update(before)
        for kind, before in self.classes:
            for name in [name for name in vars(kind) if name not in before]:
                delattr(kind, name)
            for name, value in before.items():
                if vars(kind)[name] is not value:
                    setattr(kind, name, value)


def _same(now: dict, before: dict) -> bool:
    """Return whether two dictionaries hold the same objects in the same order, which is that of a state dict."""
    return list(now) == list(before) and all(now[name] is value for name, value in before.items())
