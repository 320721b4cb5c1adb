"""The peers of the bench by name, with the settings that each is swept over."""

from __future__ import annotations

from typing import Any

from skipdit_cli.bench.peers import cache_dit, diffusers_caches, smooth_cache
from skipdit_cli.bench.peers.peer import Peer, PeerSetting
from skipdit_cli.errors import UsageError, nearest


def _sweep(*names: str, values: list[tuple]) -> list[dict[str, Any]]:
    """Return one dictionary of knobs for each row of values."""
    return [dict(zip(names, row)) for row in values]


ALL = "all"
WIDE, DEFAULT_PAB, DEFAULT_FASTER = (-1, 1001), (100, 800), (-1, 681)
DBCACHE_SWEEP = [
    *_sweep("F", "B", "warm-up", "threshold", values=[(8, 0, 8, 0.08), (1, 0, 8, 0.08)]),  # F = 8: its defaults
    *_sweep(
        "F", "B", "warm-up", "threshold", "max skips",
        values=[(1, 0, 8, 0.08, 2), (1, 0, 4, 0.08, 3), (1, 0, 4, 0.24, 3), (1, 0, 4, 0.4, 4), (1, 0, 3, 0.8, 6)],
    ),
    *_sweep("F", "B", "mask", values=[(1, 0, "medium"), (1, 0, "ultra")]),
]  # fmt: skip
PEERS: dict[str, Peer] = {
    "first-block": Peer(
        "diffusers",
        "diffusers",
        diffusers_caches.first_block,
        _sweep("threshold", values=[(0.03,), (0.05,), (0.08,), (0.12,), (0.2,), (0.4,)]),
    ),
    "taylorseer": Peer(
        "diffusers",
        "diffusers",
        diffusers_caches.taylorseer,
        [
            *_sweep("interval", "order", "modules", values=[(5, 1, "default")]),
            *_sweep("interval", "order", values=[(2, 2), (3, 2), (4, 2), (5, 2), (8, 1)]),
        ],
    ),
    "taylorseer-lite": Peer(
        "diffusers",
        "diffusers",
        diffusers_caches.taylorseer_lite,
        _sweep("interval", "order", values=[(2, 2), (3, 2), (4, 2), (5, 2), (8, 1)]),
    ),
    "magcache": Peer(
        "diffusers",
        "diffusers",
        diffusers_caches.magcache,
        _sweep(
            "threshold", "max skips", "retention",
            values=[(0.03, 2, 0.2), (0.06, 3, 0.2), (0.12, 3, 0.2), (0.3, 6, 0.1)],
        ),
    ),
    "pab": Peer(
        "diffusers",
        "diffusers",
        diffusers_caches.pyramid_attention_broadcast,
        _sweep("skip range", "timesteps", values=[(2, DEFAULT_PAB), (2, WIDE), (4, WIDE), (8, WIDE)]),
    ),
    "fastercache": Peer(
        "diffusers",
        "diffusers",
        diffusers_caches.fastercache,
        _sweep(
            "attention skip range", "guidance skip range", "timesteps",
            values=[(2, 2, DEFAULT_FASTER), (2, 5, DEFAULT_FASTER), (2, 5, WIDE), (4, 10, WIDE)],
        ),
    ),
    "smoothcache": Peer(
        "dit-smoothcache",
        "SmoothCache",
        smooth_cache.smoothcache,
        _sweep("alpha", "max skips", values=[(0.08, 3), (0.18, 3), (0.35, 3), (1.0, 7)]),
    ),
    "dbcache": Peer("cache-dit", "cache_dit", cache_dit.dbcache, DBCACHE_SWEEP),
    "dbcache-taylor": Peer(
        "cache-dit",
        "cache_dit",
        cache_dit.dbcache_taylor,
        [{**knobs, "order": 2 if "max skips" in knobs else 1} for knobs in DBCACHE_SWEEP],  # 1: its default
    ),
}  # fmt: skip


def parse_peers(text: str | None) -> list[PeerSetting]:
    """Return every setting of the peers in a list such as "first-block,taylorseer", or of all peers for "all".

    Raises:
        UsageError: A name is unknown.
    """
    names = [] if text is None else [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in (ALL, *PEERS):
            expected = f"expected {ALL} or a list of {', '.join(PEERS)}"
            raise UsageError(f"Got --peers {name} but {expected}.{nearest(name, PEERS)}")
    if text is not None and not names:
        raise UsageError(f"Got an empty --peers; give {ALL} or a list of {', '.join(PEERS)}.")
    chosen = PEERS if ALL in names else dict.fromkeys(names)
    return [PeerSetting(name, tuple(knobs.items())) for name in chosen for knobs in PEERS[name].sweep]
