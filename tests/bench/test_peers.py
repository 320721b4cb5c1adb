"""skipdit bench --peers: other caches run beside ours, or say why they do not, and leave nothing behind."""

from contextlib import contextmanager
from importlib.util import find_spec

import pytest
import torch

from skipdit_cli import CachePolicy, add_skip_branches
from skipdit_cli.bench.peers import known_peers
from skipdit_cli.bench.peers.known_peers import PEERS, parse_peers
from skipdit_cli.bench.peers.pareto import pareto_front
from skipdit_cli.bench.peers.peer import Peer, PeerSetting
from skipdit_cli.bench.peers.smooth_cache import make_schedule
from skipdit_cli.bench.run import Bench
from skipdit_cli.errors import UsageError
from skipdit_cli.models import load_pipeline
from skipdit_cli.planning.flops import StepFlops
from skipdit_cli.sampling.device import transformers_of
from skipdit_cli.sampling.generate import generate
from tests.support.tiny_pipelines import build, settings_of

QUICK = {"num_inference_steps": 8, "seed": 3, "guidance_scale": 2.0}
MEASURED = ("seconds", "speedup_vs_vanilla", "limit", "latent_rel_l2", "steps", "full_steps")


def bench(pipe, peers, conditions=(1, 2), **settings):
    return Bench(pipe, [CachePolicy(1, interval=2)], conditions, peers=peers, **{**QUICK, **settings})


def peer_rows(run):
    return [row for row in run.run(rounds=1, warmup=0) if row["peer"]]


def state_of(pipe) -> list:
    """Everything that a peer could leave on a pipeline, its modules and its class."""
    modules = [module for transformer in transformers_of(pipe).values() for module in transformer.modules()]
    return [(each, sorted(vars(each)), each.__dict__.get("forward")) for each in modules] + [
        (kind, {name: id(value) for name, value in vars(kind).items()})
        for kind in (type(pipe), *map(type, transformers_of(pipe).values()))
    ]


@pytest.fixture
def pipe(tiny_pipeline):
    """A pipeline with skip branches that do something."""
    pipe = load_pipeline(tiny_pipeline())
    torch.manual_seed(1)
    for linear in add_skip_branches(pipe.transformer).linears:
        torch.nn.init.normal_(linear.weight, std=0.05)
    return pipe


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_runs_or_says_why_and_the_model_is_as_it_was(tiny_pipeline, name):
    pipe = load_pipeline(tiny_pipeline())
    bench(pipe, []).run(rounds=1, warmup=0)
    before, state = generate(pipe, [1, 2], **QUICK).latents, state_of(pipe)
    cautious, *_, bold = parse_peers(name)
    run = bench(pipe, [cautious, bold])
    rows = peer_rows(run)
    assert len(rows) == 2
    for row in rows:
        assert row["peer"] == name and row["case"] == "peer" and row["schedule"]
        if row["why"] is None:
            assert row["limit"] > 1 and row["steps"] == 8 and row["full_steps"] < 8
            assert not row["identical"] and row["latent_rel_l2"] > 0
        else:
            assert all(row[key] is None for key in MEASURED)
            assert ("is not installed" in row["why"]) == (find_spec(PEERS[name].module) is None)
    assert len(run.peers.notes()) == len({row["why"] for row in rows} - {None})
    if find_spec(PEERS[name].module):
        assert rows[-1]["why"] is None or rows[0]["why"] is None
    for setting in run.peers.costs:  # a second run with the peer begins as the first
        with_peer = [run.peers.run(setting).latents for _ in range(2)]
        assert torch.equal(*with_peer) and not torch.equal(with_peer[0], before)
    unchanged = state_of(pipe) == state
    assert unchanged
    assert torch.equal(generate(pipe, [1, 2], **QUICK).latents, before)


def test_the_limit_is_counted_and_the_state_is_new_in_every_batch(pipe):
    reuse_all = PeerSetting("first-block", (("threshold", 1e9),))
    before = generate(pipe, [1, 2], **QUICK).latents
    run = bench(pipe, [reuse_all], (1, 2, 3, 4), batch_size=2)
    rows = peer_rows(run)
    assert StepFlops(pipe.transformer).vanilla == run.macs["vanilla"] < run.macs["skip"]
    assert torch.equal(generate(pipe, [1, 2], **QUICK).latents, before)  # branches and all
    flops = run.flops["vanilla"]
    left_out = flops.full - sum(flops.units[1:])
    assert rows[0]["limit"] == pytest.approx(8 * flops.full / (flops.full + 7 * left_out), rel=1e-6)
    assert rows[0]["full_steps"] == 2  # one in each batch
    batches = run.generated[-1].latents
    alone = bench(pipe, [reuse_all], (1, 2))
    peer_rows(alone)
    assert torch.equal(alone.generated[-1].latents, batches[:2])


def test_peers_that_do_nothing_or_raise_say_so(pipe, monkeypatch):
    @contextmanager
    def idle(pipe, run, knobs):
        yield lambda: None

    @contextmanager
    def broken(pipe, run, knobs):
        pipe.transformer.transformer_blocks[0].forward = None
        raise ValueError("no such block")
        yield

    monkeypatch.setitem(known_peers.PEERS, "idle", Peer("diffusers", "diffusers", idle, [{"a": 1}]))
    monkeypatch.setitem(known_peers.PEERS, "broken", Peer("diffusers", "diffusers", broken, [{"a": 1}]))
    monkeypatch.setitem(known_peers.PEERS, "absent", Peer("no-such-cache", "no_such_cache", idle, [{"a": 1}]))
    before = generate(pipe, [1, 2], **QUICK).latents
    never = PeerSetting("first-block", (("threshold", 0.0),))
    silent = parse_peers("taylorseer")[0]
    rows = peer_rows(bench(pipe, [never, silent, *parse_peers("idle,broken,absent")]))
    reused, silent, hooked, raised, absent = [row["why"] for row in rows]
    assert reused == "It reused nothing: all 8 calls of the model ran in full."
    assert silent == hooked == "It hooks nothing on DiTTransformer2DModel."
    assert raised == "ValueError: no such block"
    assert absent.startswith("no-such-cache is not installed; run pip install 'skipdit-cli[peers]' (in a clone: ")
    assert torch.equal(generate(pipe, [1, 2], **QUICK).latents, before)


@pytest.mark.parametrize("name", ["flux", "wan-2.2", "hunyuan-dit"])
def test_no_peer_breaks_a_bench_of_a_text_conditional_pipeline(name):
    pipe, settings = build(name), settings_of(name)
    quick = {"num_inference_steps": 4, "seed": 3, **settings}
    before, state = generate(pipe, ["a red cat"], **quick).latents, state_of(pipe)
    settings = [next(setting for setting in parse_peers("all") if setting.peer == peer) for peer in PEERS]
    rows = peer_rows(Bench(pipe, [CachePolicy(1, interval=2)], ["a red cat"], peers=settings, **quick))
    assert {row["peer"] for row in rows} == set(PEERS)
    assert all((row["why"] is None) == (row["limit"] is not None) for row in rows)
    assert [entry[0] for entry in state_of(pipe)] == [entry[0] for entry in state]
    assert torch.equal(generate(pipe, ["a red cat"], **quick).latents, before)


def test_the_command_writes_the_plot_and_names_what_did_not_run(skipdit, tiny_pipeline, tmp_path):
    done = skipdit(
        "bench", "-m", tiny_pipeline(), "--steps", 6, "--rounds", 1, "--warmup", 0, "--class-labels", 1,
        "--cache-interval", 2, "--peers", "first-block, pab", "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert done.json["peers"] == ["first-block", "pab"]
    assert {row["peer"] for row in done.json["rows"]} == {None, "first-block", "pab"}
    assert (tmp_path / "out" / "pareto.png").stat().st_size > 5000
    assert "first-block" in (tmp_path / "out" / "bench.md").read_text()


def test_unknown_peers_are_refused(skipdit, tiny_pipeline):
    done = skipdit("bench", "-m", tiny_pipeline(), "--peers", "first-blck")
    assert done.code == 2 and "Did you mean 'first-block'?" in done.stderr
    done = skipdit("bench", "-m", tiny_pipeline(), "--peers", "all", "--compile")
    assert done.code == 2 and "peers run eagerly" in done.stderr
    with pytest.raises(UsageError, match="empty --peers"):
        parse_peers(" ,")


def test_every_name_gives_its_sweep():
    assert parse_peers(None) == []
    assert len(parse_peers("all")) == sum(len(peer.sweep) for peer in PEERS.values())
    assert {setting.peer for setting in parse_peers("pab,magcache")} == {"pab", "magcache"}


def test_the_front_keeps_what_no_other_point_beats():
    assert pareto_front([(1, 50), (2, 40), (2, 45), (3, 41), (2.5, 41), (4, 20)]) == [
        (1, 50),
        (2, 45),
        (3, 41),
        (4, 20),
    ]
    assert pareto_front([]) == []


def test_a_schedule_computes_where_the_error_is_too_large_or_the_reuse_too_long():
    errors = {(start, step): 0.1 * (step - start) for start in range(8) for step in range(start + 1, 8)}
    assert make_schedule(errors, 8, 0.25, 3) == [1, 0, 0, 1, 0, 0, 1, 0]
    assert make_schedule(errors, 8, 1.0, 3) == [1, 0, 0, 0, 1, 0, 0, 0]
    assert make_schedule(errors, 4, 0.05, 3) == [1, 1, 1, 1]
