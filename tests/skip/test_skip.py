"""DESIGN section 4: one mechanism, attached to instances, exact, and removed without trace."""

import copy
import pickle
import weakref

import accelerate
import pytest
import torch
from diffusers.training_utils import EMAModel

from skipdit_cli import SkipBranches, add_skip_branches, remove_skip_branches
from skipdit_cli.errors import UsageError
from tests.support.tiny_dit_runs import inputs, run, traces, train_a_little


@pytest.mark.parametrize("num_layers", [2, 6, 7])
def test_new_residual_branches_change_no_bit(tiny_dit, num_layers):
    model = tiny_dit(num_layers=num_layers)
    before = run(model)
    branches = add_skip_branches(model)
    assert branches.num_pairs == num_layers // 2
    assert torch.equal(run(model), before)


def test_trained_branches_do_change_the_output(tiny_dit):
    model = tiny_dit()
    before = run(model)
    train_a_little(add_skip_branches(model))
    assert (run(model) - before).abs().max() > 1e-3


@pytest.mark.parametrize("merge", ["residual", "replace"])
@pytest.mark.parametrize("num_layers", [6, 7])
def test_block_i_feeds_block_l_minus_1_minus_i(tiny_dit, merge, num_layers):
    model = tiny_dit(num_layers=num_layers)
    branches = train_a_little(add_skip_branches(model, merge))
    joined = run(model)
    remove_skip_branches(model)
    sources = {}
    handles = []
    for i, block in enumerate(model.transformer_blocks):
        pair = num_layers - 1 - i

        def before(module, args, kwargs, i=i, pair=pair):
            x = args[0] if args else kwargs["hidden_states"]
            if i > pair:
                both = torch.cat([x, sources[pair]], dim=-1)
                norm, linear = branches.norms[pair], branches.linears[pair]
                mean, variance = both.mean(-1, keepdim=True), both.var(-1, keepdim=True, correction=0)
                joined = linear((both - mean) / (variance + 1e-6).sqrt() * norm.weight + norm.bias)
                x = x + joined if merge == "residual" else joined
            return (x, *args[1:]) if args else ((), {**kwargs, "hidden_states": x})

        def fixed(module, args, kwargs, before=before):
            result = before(module, args, kwargs)
            return (result, kwargs) if args else result

        handles.append(block.register_forward_pre_hook(fixed, with_kwargs=True))
        handles.append(block.register_forward_hook(lambda m, a, out, i=i: sources.__setitem__(i, out)))
    assert torch.allclose(run(model), joined, atol=1e-5)


def test_attach_and_detach_leave_no_trace(tiny_dit):
    model = tiny_dit()
    before, clean = run(model), traces(model)
    for _ in range(2):
        branches = train_a_little(add_skip_branches(model))
        assert remove_skip_branches(model) is branches
        assert traces(model) == clean
        assert torch.equal(run(model), before)
    assert remove_skip_branches(model) is None


def test_base_parameters_keep_their_names(tiny_dit):
    model = tiny_dit()
    names = set(model.state_dict())
    add_skip_branches(model)
    added = set(model.state_dict()) - names
    assert names < set(model.state_dict())
    assert added and all(name.startswith("skip_branches.") for name in added)


def test_a_second_call_replaces_the_branches(tiny_dit):
    model = tiny_dit()
    before = run(model)
    train_a_little(add_skip_branches(model))
    add_skip_branches(model)
    assert torch.equal(run(model), before)


def test_two_models_do_not_share(tiny_dit):
    one, other = tiny_dit(seed=0), tiny_dit(seed=1)
    expected = run(other)
    train_a_little(add_skip_branches(one))
    assert torch.equal(run(other), expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_stand_alone(tiny_dit, duplicate):
    model = tiny_dit()
    before = run(model)
    train_a_little(add_skip_branches(model))
    joined = run(model)
    copied = duplicate(model)
    assert torch.equal(run(copied), joined)
    torch.nn.init.zeros_(copied.skip_branches.linears[0].weight)
    assert torch.equal(run(model), joined)
    remove_skip_branches(model)
    assert torch.equal(run(model), before)
    assert not torch.equal(run(copied), before)


def test_branches_save_and_load_like_any_diffusers_part(tiny_dit, tmp_path):
    model = tiny_dit()
    train_a_little(add_skip_branches(model)).save_pretrained(tmp_path)
    joined = run(model)
    loaded = SkipBranches.from_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    add_skip_branches(model, branches=loaded)
    assert torch.equal(run(model), joined)


@pytest.mark.parametrize("twice", [False, True], ids=["one forward", "two forwards before backward"])
def test_gradient_checkpointing_gives_the_same_gradients(tiny_dit, twice):
    model = tiny_dit()
    train_a_little(add_skip_branches(model))

    def gradients():
        model.zero_grad()
        loss = model(**inputs()).sample.square().mean()
        if twice:
            loss = loss + model(**inputs(seed=1)).sample.square().mean()
        loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    plain = gradients()
    model.enable_gradient_checkpointing()
    again = gradients()
    assert len(plain) == len(again)
    assert all(torch.equal(a, b) for a, b in zip(plain, again))


def test_zero_branches_get_gradients_at_once(tiny_dit):
    model = tiny_dit()
    branches = add_skip_branches(model)
    model.requires_grad_(False)
    branches.requires_grad_(True)
    model(**inputs()).sample.square().mean().backward()
    assert all(linear.weight.grad.abs().max() > 0 for linear in branches.linears)
    assert model.proj_out_2.weight.grad is None


def test_no_source_outlives_the_forward(tiny_dit):
    model, joined = tiny_dit(), []
    branches = train_a_little(add_skip_branches(model))
    branches.register_forward_pre_hook(lambda module, args: joined.extend(map(weakref.ref, args[:2])))
    run(model)
    model(**inputs())
    assert len(joined) == 12 and all(tensor() is None for tensor in joined)


def test_autocast_and_bfloat16(tiny_dit):
    model = tiny_dit()
    before = run(model)
    train_a_little(add_skip_branches(model))
    full = run(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(run(model).float(), full, atol=0.1)
    half = run(model.to(torch.bfloat16), hidden_states=inputs()["hidden_states"].bfloat16())
    assert half.dtype is torch.bfloat16 and torch.allclose(half.float(), full, atol=0.1)
    assert not torch.equal(full, before)


def test_compiles_into_one_graph(tiny_dit):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model = tiny_dit()
    train_a_little(add_skip_branches(model))
    expected, counter = run(model), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    assert torch.equal(run(compiled), expected)
    run(compiled)
    assert counter.frame_count == 1


def test_ema_averages_the_branches_too(tiny_dit):
    model = tiny_dit()
    branches = add_skip_branches(model)
    average = EMAModel(model.parameters(), decay=0.5)
    train_a_little(branches)
    average.step(model.parameters())
    average.copy_to(model.parameters())
    assert 0 < branches.linears[0].weight.abs().max() < 0.5


def test_lora_finds_its_targets(tiny_dit):
    from peft import LoraConfig, inject_adapter_in_model

    model = tiny_dit()
    train_a_little(add_skip_branches(model))
    before = run(model)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), model)
    adapted = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert len(adapted) == 2 * 6 and all(name.startswith("transformer_blocks.") for name in adapted)
    assert not torch.equal(run(model), before)


def test_offload_hooks_may_come_and_go(tiny_dit):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    model = tiny_dit()
    before = run(model)
    train_a_little(add_skip_branches(model))
    joined = run(model)
    for block in model.transformer_blocks:
        add_hook_to_module(block, ModelHook())
    assert torch.equal(run(model), joined)
    remove_skip_branches(model)  # ours lies under the hooks now
    assert torch.equal(run(model), before)
    remove_hook_from_module(model, recurse=True)
    assert torch.equal(run(model), before)
    train_a_little(add_skip_branches(model))
    assert torch.equal(run(model), joined)


def test_ddp_and_fsdp_train_with_branches(tiny_dit, tmp_path):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    def branch_gradient(wrap):
        model = tiny_dit()
        branches = train_a_little(add_skip_branches(model))
        wrapped = wrap(model)
        wrapped(**inputs()).sample.square().mean().backward()
        gradient = branches.linears[0].weight.grad
        return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient

    expected = branch_gradient(lambda model: model)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        assert torch.allclose(branch_gradient(DistributedDataParallel), expected)
        assert torch.allclose(branch_gradient(lambda model: fully_shard(model, mesh=mesh)), expected)
    finally:
        dist.destroy_process_group()


def test_refusals(tiny_dit):
    with pytest.raises(UsageError, match="dim 16"):
        add_skip_branches(tiny_dit(num_attention_heads=3), branches=SkipBranches(dim=16, num_layers=6))
    with pytest.raises(UsageError, match="num_layers 4"):
        add_skip_branches(tiny_dit(), branches=SkipBranches(dim=16, num_layers=4))
    with pytest.raises(UsageError, match="residual, replace"):
        SkipBranches(dim=16, num_layers=4, merge="add")
    with pytest.raises(UsageError, match="no transformer trunk"):
        add_skip_branches(torch.nn.Linear(2, 2))
    with torch.device("meta"):
        empty = SkipBranches(dim=16, num_layers=6)
    with pytest.raises(UsageError, match="meta"):
        add_skip_branches(tiny_dit(), branches=empty)
    offloaded = tiny_dit()
    accelerate.cpu_offload(offloaded, torch.device("cpu"))
    with pytest.raises(UsageError, match="before offloading"):
        add_skip_branches(offloaded)
