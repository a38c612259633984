"""How a model is executed changes speed and memory, and no number beyond rounding."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import methods
from methods.base import EXECUTIONS, Context, Embedding, Execution, Model, Output, TaskLoss
from methods.randomness import image_keys
from methods.sam import execution as executions
from methods.trial import shake

NAMES = [
    "lora", "conv_lora", "vpt", "lst", "sam_adapter", "ssf", "adapter", "bitfit", "convpass", "adaptformer", "norm",
    "full_finetune", "conv_lora+vpt",
]  # fmt: skip
SIDE = 64
HALVES = slice(0, 2), slice(2, 3)

each_method = pytest.mark.parametrize("name", NAMES)
each_checkpointing = pytest.mark.parametrize("checkpointing", ["blocks", "selective"])


def build(name: str, backbone: str, *, side: int = SIDE, **changed: Any) -> Model:
    """A model whose trained parameters are not at their neutral first values, so that routers choose variously."""
    model = methods.create(name, {}).build(Context(image_size=side, backbone=backbone, checkpoint="none"))
    shake(model.trainable(), 0.05)
    model.set_execution(Execution(**changed))
    return model.train()


def training(
    model: Model, images: Tensor, masks: Tensor, task_loss: TaskLoss, parts: Sequence[slice] = HALVES
) -> dict[str, Tensor]:
    """Losses, expert counts and all gradients of a step in micro-batches, backward only after the last of them."""
    model.zero_grad()
    losses, counts = [], []
    for part in parts:
        output = model(images[part], image_keys(0, 0, range(part.start, part.stop)))
        losses.append(model.loss(output, model.targets(masks[part]), task_loss))
        counts += [] if output.expert_counts is None else [output.expert_counts]
    for loss in losses:
        loss.sum().backward()
    found = {"losses": torch.cat(losses).detach()} | ({"counts": torch.cat(counts)} if counts else {})
    return found | {name: p.grad for name, p in model.trainable().items() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= relative * value.abs().max().clamp(min=1e-3), name


@each_checkpointing
@each_method
def test_gradients_are_the_same_with_checkpoints(
    name: str, checkpointing: str, mini: str, batch: Callable, task_loss: TaskLoss
) -> None:
    images, masks = batch(3, SIDE)
    expected = training(build(name, mini), images, masks, task_loss)
    found = training(build(name, mini, checkpointing=checkpointing), images, masks, task_loss)
    assert_same(found, expected, 1e-6)


@each_checkpointing
def test_layers_keep_what_the_last_batch_told_them(
    checkpointing: str, mini: str, batch: Callable, task_loss: TaskLoss
) -> None:
    """Computing an earlier batch again leaves no trace of it."""
    images, masks = batch(3, SIDE)
    model = build("conv_lora", mini, checkpointing=checkpointing)
    training(model, images, masks, task_loss)
    expected = image_keys(0, 0, [2])
    assert all(torch.equal(m.random_keys, expected) for m in model.modules() if hasattr(m, "random_keys"))


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Traces and differentiates as the real one does, and generates no code."""
    monkeypatch.setattr(executions, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("name", "checkpointing"), [("conv_lora", "blocks"), ("vpt", "selective"), ("convpass", "none")]
)
def test_gradients_are_the_same_compiled(
    name: str, checkpointing: str, mini: str, batch: Callable, task_loss: TaskLoss
) -> None:
    images, masks = batch(2, SIDE)
    expected = training(build(name, mini), images, masks, task_loss, HALVES[:1])
    model = build(name, mini, compile=True, checkpointing=checkpointing)
    assert_same(training(model, images, masks, task_loss, HALVES[:1]), expected, 1e-4)
    with torch.no_grad():
        compiled = model.eval()(images).masks
        model.set_execution(Execution())
        assert_same({"masks": compiled}, {"masks": model(images).masks}, 1e-4)


@pytest.mark.usefixtures("compiler")
def test_blocks_of_one_structure_share_what_is_compiled(mini: str, batch: Callable) -> None:
    """And a batch size that was seen is not compiled again."""
    model = build("lora", mini, compile=True).eval()
    counters = torch._dynamo.utils.counters
    seen = []
    for count in (2, 1, 2, 1):
        with torch.no_grad():
            model(batch(count, SIDE)[0])
        seen.append(counters["stats"]["unique_graphs"])
    assert seen == [2, 4, 4, 4], "windows and whole maps, for each batch size"
    assert not counters["graph_break"]


@pytest.mark.parametrize("changed", [{"checkpointing": "selective"}, {"compile": True}, {"attention": "bias"}])
def test_no_parameter_changes(changed: dict[str, Any], mini: str) -> None:
    model = build("conv_lora+vpt", mini)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = list(model.trainable())
    model.set_execution(Execution(**changed))
    assert list(model.trainable()) == trained
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(copy.deepcopy(model).state_dict()) == list(before)


class Alive(TorchDispatchMode):
    """Bytes of all storages made within that still exist, but for those of ``model``'s parameters.

    What selective checkpoints keep passes no hook on saved tensors, so memory itself is looked at.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.bytes: dict[int, int] = {}
        self.own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        out = function(*arguments, **(options or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata not in self.bytes.keys() | self.own:
                self.bytes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.bytes.pop, storage._cdata, None)
        return out


def cost(model: Model, images: Tensor) -> tuple[int, int]:
    """Bytes alive between forward and backward pass of the encoder, and operations of both together."""
    with FlopCounterMode(display=False) as counter:
        with Alive(model) as alive:
            features = model.encode(images).features
        gc.collect()
        kept = sum(alive.bytes.values())
        features.sum().backward()
    return kept, counter.get_total_flops()


def test_blocks_keep_their_inputs_and_selective_repeats_no_large_product(batch: Callable) -> None:
    images, how = batch(2, 128)[0], EXECUTIONS["checkpointing"]
    made = {one: build("lora", "tiny", side=128, attention="folded", checkpointing=one) for one in how}
    (all_kept, least), (inputs, _), (some, more) = (cost(made[one], images) for one in how)
    assert inputs < 0.2 * all_kept
    # Where weights are frozen little is kept at all, so that keeping products instead saves a part only.
    assert inputs < some < all_kept
    # What it repeats are products of rank 3 and position terms.
    assert least < more < 1.01 * least


def test_what_vit_h_keeps_at_1024_px(monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA on four images in bf16, without data; docs/speed.md has the figures, ``-s`` prints them."""
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)  # it looks at numbers
    found = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = methods.create("lora").build(Context(image_size=1024, backbone="vit_h", checkpoint="none")).train()
        for how in EXECUTIONS["checkpointing"]:
            model.set_execution(Execution(attention="folded", checkpointing=how))
            with torch.autocast("cpu", torch.bfloat16):
                kept, operations = cost(model, torch.empty(4, 3, 1024, 1024))
            found[how] = kept / 2**30
            print(f"{how}: {found[how]:.2f} GiB, {operations / 4e12:.2f} TFLOP an image without attention's products")
        model = methods.create("lora", {"last_k": 8}).build(Context(1, 1024, "vit_h", checkpoint="none")).train()
        model.set_execution(Execution(attention="folded"))
        with torch.autocast("cpu", torch.bfloat16):
            last = cost(model, torch.empty(4, 3, 1024, 1024))[0] / 2**30
    assert found["blocks"] < 3 < found["selective"] < 0.8 * found["none"] < 18
    assert last == pytest.approx(found["none"] * 8 / 32, rel=0.02), "the README says so"


def test_a_lora_step_has_no_needless_product(batch: Callable) -> None:
    """Forward, and backward only the gradients of activations and of what is trained; none below the first qkv."""
    images, tokens, width, rank, blocks = batch(2, 128)[0], 2 * 64, 192, 3, 12
    model = build("lora", "tiny", side=128, attention="explicit")
    with FlopCounterMode(display=False) as forward:
        features = model.encode(images).features
    with FlopCounterMode(display=False) as backward:
        features.sum().backward()
    layers = 2 * tokens * width * width * (3 + 1 + 4 + 4)
    low = 2 * tokens * rank * (width + 3 * width)
    attention = 2 * tokens * 3 * 64 * ((64 + 8 + 8) + 64)
    patches, neck = 2 * tokens * 3 * 16**2 * width, 2 * tokens * 128 * (width + 9 * 128)
    terms = 2 * tokens * 3 * 64 * (8 + 8)
    assert forward.get_total_flops() == blocks * (layers + low + attention + terms) + patches + neck
    below = 2 * tokens * width * 3 * width + 2 * tokens * rank * width  # the first block's input needs no gradient
    needed = blocks * (layers + 2 * low + 2 * attention + terms) + neck - below
    assert backward.get_total_flops() == needed


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"attention": "flash"}, "attention = 'flash'; allowed: auto, folded"),
        ({"checkpointing": True}, "checkpointing = True; allowed: none, blocks, selective"),
        ({"compile": 1}, "compile = 1; allowed: False, True"),
    ],
)
def test_unknown_values_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Execution(**changed)


class Fixed(Model):
    """A model that knows one way."""

    def encode(self, images: Tensor, keys: Tensor | None = None) -> Embedding:
        return Embedding(images, {})

    def decode(self, embedding: Embedding) -> Output:
        return Output(embedding.features)


def test_a_model_that_knows_one_way_says_so() -> None:
    Fixed().set_execution(Execution())
    with pytest.raises(ValueError, match="Fixed cannot be executed.*selective.*--checkpointing"):
        Fixed().set_execution(Execution(checkpointing="selective"))
