"""The page of ``skipdit play`` without a server."""

import pytest


@pytest.fixture
def open_page(skipdit, monkeypatch):
    """``open_page("-m", folder)`` runs ``skipdit play`` up to its page and returns the ``Callbacks`` of the page."""
    from skipdit_cli.commands import play_sample
    from skipdit_cli.play import play_page, serve

    players = []
    monkeypatch.setattr(play_sample, "check_packages", lambda: None)
    monkeypatch.setattr(play_page, "make_page", lambda player: player)
    monkeypatch.setattr(serve, "serve", lambda page, *rest: players.append(page))

    def run(*arguments) -> play_page.Callbacks:
        outcome = skipdit("play", *arguments)
        assert outcome.code == 0, outcome.stderr
        return play_page.Callbacks(players[-1])

    return run
