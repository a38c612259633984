"""Methods that adapt the last blocks only: what is adapted, what stays frozen, and that frozen blocks keep nothing."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from methods import Context, Model, create, registry
from methods.base import Execution, TaskLoss
from methods.blockwise import BlockwiseMethod
from methods.compose import ParameterError, parameters_of
from methods.randomness import image_keys
from methods.trial import added, shake

# Added on vit_h for a block and, with ``last_k``, whatever its value.
ADDED_ON_VIT_H = {
    "adapter": (12_804, 0),
    "adaptformer": (165_184, 0),
    "bitfit": (14_080, 512),
    "conv_lora": (16_080, 0),
    "convpass": (44_704, 0),
    "inception": (15_720, 0),
    "lora": (15_360, 0),
    "norm": (5_120, 1_024),
    "sam_adapter": (6_480, 102_480 + 61_520 + 103_680),
    "ssf": (28_160, 0),
    "vpt": (15_360, 0),
}
PATCH_EMBEDDING = {"bitfit": 1_280, "ssf": 2_560}  # what all blocks have beside

each_method = pytest.mark.parametrize("name", ADDED_ON_VIT_H)


def build(name: str, backbone: str, *, image_size: int = 64, **parameters: object) -> Model:
    return create(name, parameters).build(Context(backbone=backbone, checkpoint="none", image_size=image_size))


def test_these_methods_take_last_k() -> None:
    found = {name for name in registry.names() if issubclass(registry[name], BlockwiseMethod)}
    assert found == set(ADDED_ON_VIT_H)


@each_method
def test_counts_on_vit_h(name: str) -> None:
    context = Context(backbone="vit_h", checkpoint="none")
    block, rest = ADDED_ON_VIT_H[name]
    for last_k in (1, 4, 32):
        method = create(name, {"last_k": last_k})
        assert method.added_parameters(context) == last_k * block + rest
    assert create(name).added_parameters(context) == 32 * block + rest + PATCH_EMBEDDING.get(name, 0)
    with torch.device("meta"):
        model = create(name, {"last_k": 4}).build(context)
    assert sum(p.numel() for p in added(model).values()) == 4 * block + rest


@each_method
def test_all_blocks_is_the_default_and_no_part_of_a_cells_identity(name: str) -> None:
    assert create(name, {"last_k": None}) == create(name)
    assert parameters_of(create(name), changed_only=True) == {}
    assert parameters_of(create(name, {"last_k": 4}), changed_only=True) == {"last_k": 4}


@each_method
def test_only_the_last_blocks_and_what_comes_after_them_are_trained(mini: str, name: str) -> None:
    everything, last = added(build(name, mini)), added(build(name, mini, last_k=2))
    if name == "sam_adapter":  # its layers for the two blocks are its first two
        wanted = {n for n in everything if "lightweight_mlps.2" not in n}
    else:
        wanted = {n for n in everything if ".blocks.0." not in n and ".patch_embed." not in n}
    assert last.keys() == wanted and len(wanted) < len(everything)


@each_method
def test_as_many_as_there_are_is_all_of_them(mini: str, name: str) -> None:
    everything, last = build(name, mini), build(name, mini, last_k=3)
    if name in PATCH_EMBEDDING:
        left = everything.trainable().keys() - last.trainable().keys()
        assert left and all(".patch_embed." in n for n in left)
        return
    assert list(last.trainable()) == list(everything.trainable())
    assert all(torch.equal(value, everything.state_dict()[n]) for n, value in last.state_dict().items())


@each_method
def test_more_blocks_than_the_backbone_has_are_refused(mini: str, name: str) -> None:
    method, context = create(name, {"last_k": 4}), Context(backbone=mini, checkpoint="none", image_size=64)
    for asked in (method.build, method.added_parameters):
        with pytest.raises(ValueError, match=f"last_k = 4; allowed for {mini}: 1 to 3"):
            asked(context)
    for value in (0, -1, 2.0, True):
        with pytest.raises(ParameterError, match=re.escape(f"last_k = {value}")):
            create(name, {"last_k": value})


@torch.no_grad()
@each_method
def test_the_frozen_blocks_compute_what_the_frozen_sam_does(mini: str, batch: Callable, name: str) -> None:
    images, outputs = batch(2)[0], []
    for model in (build("decoder_only", mini), build(name, mini, last_k=2)):
        shake(added(model), 0.1)
        features = []
        for index in (0, 1):
            model.image_encoder.blocks[index].register_forward_hook(lambda _, __, out: features.append(out[0]))
        model.eval()(images)
        outputs.append(features)
    (below, first), (same, changed) = outputs
    assert torch.equal(same, below)
    assert not torch.allclose(changed, first, rtol=1e-3)


@pytest.mark.parametrize("name", sorted(set(ADDED_ON_VIT_H) - {"sam_adapter", "vpt", "ssf"}))
def test_equals_all_blocks_of_which_the_first_does_nothing_yet(
    mini: str, batch: Callable, task_loss: TaskLoss, name: str
) -> None:
    images, masks = batch(2)
    last, everything = build(name, mini, last_k=2), build(name, mini)
    shake(last.trainable(), 0.05)
    everything.load_state_dict(last.trainable(), strict=False)
    found = []
    for model in (last, everything):
        output = model.eval()(images)
        model.loss(output, model.targets(masks), task_loss).sum().backward()
        found.append((output.masks, {n: p.grad for n, p in model.trainable().items() if p.grad is not None}))
    (ours, gradients), (theirs, more) = found
    assert torch.equal(ours, theirs)
    assert gradients.keys() < more.keys()
    assert all(torch.allclose(more[n], gradient, rtol=1e-5, atol=1e-7) for n, gradient in gradients.items())


@pytest.mark.parametrize("checkpointing", ["none", "blocks", "selective"])
@each_method
def test_frozen_blocks_keep_nothing_for_the_backward_pass(
    mini: str, batch: Callable, name: str, checkpointing: str
) -> None:
    model = build(name, mini, last_k=1).train()
    model.set_execution(Execution(checkpointing=checkpointing))
    made: dict[str, list[weakref.ref[Tensor]]] = {"frozen": [], "adapted": []}

    def remember(kind: str) -> Callable:
        def hook(_: nn.Module, __: object, output: Tensor | tuple) -> None:
            made[kind].append(weakref.ref(output[0] if isinstance(output, tuple) else output))

        return hook

    for index, block in enumerate(model.image_encoder.blocks):
        for module in block.modules():
            module.register_forward_hook(remember("adapted" if index == 2 else "frozen"))
    features = model.encode(batch(2)[0], image_keys(0, 0, range(2))).features
    gc.collect()
    alive = {kind: [output() for output in outputs if output() is not None] for kind, outputs in made.items()}
    assert features.requires_grad and alive["adapted"]
    # What the last frozen block hands on may be needed by the first adapted one.
    assert len(alive["frozen"]) <= 1 and not any(output.requires_grad for output in alive["frozen"])


def test_a_step_costs_the_backward_pass_of_the_adapted_blocks(batch: Callable) -> None:
    images, backward = batch(1, 128)[0], {}
    for last_k in (1, 2, 3, 12):
        features = build("lora", "tiny", image_size=128, last_k=last_k).train().encode(images).features
        with FlopCounterMode(display=False) as counter:
            features.sum().backward()
        backward[last_k] = counter.get_total_flops()
    block = backward[2] - backward[1]
    assert block > 0 and backward[3] - backward[2] == block
    assert backward[12] == backward[1] + 11 * block


def test_experts_are_counted_in_adapted_blocks_and_draw_differently(mini: str, batch: Callable) -> None:
    model = build("conv_lora", mini, last_k=2).train()
    output = model(batch(2)[0], image_keys(0, 0, range(2)))
    assert output.expert_counts.shape == (2, 2, 8)
    salts = [block.attn.qkv.salt for block in model.image_encoder.blocks[1:]]
    assert len(set(salts)) == 2


def test_each_part_of_a_composition_has_its_own(mini: str) -> None:
    model = build("conv_lora+vpt", mini, **{"last_k": 1, "vpt.last_k": 2})
    blocks = model.image_encoder.blocks
    assert [hasattr(block.attn.qkv, "lora_A") for block in blocks] == [False, False, True]
    assert [block.extra_kv is not None for block in blocks] == [False, True, True]
