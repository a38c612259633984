"""What a training leaves behind: the trained parameters alone, and what is needed to build them in again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.base import Context, Model

WEIGHTS, CARD = "adapter.safetensors", "adapter.json"


class AdapterError(ValueError):
    """An adapter that does not fit the model it is put into."""


def save(model: Model, folder: Path, card: dict[str, Any]) -> None:
    """Write what training changed and ``card`` into ``folder``.

    Args:
        model: its state is saved, in float32.
        folder: an existing folder.
        card: what :func:`load` needs: ``method`` {name, parameters}, ``context``, ``backbone_digest``.
    """
    from safetensors.torch import save_file

    state = {name: _stored(value) for name, value in model.state().items()}
    save_file(state, folder / WEIGHTS)
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")


def _stored(value: Tensor) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.float() if value.is_floating_point() else value


def restore(model: Model, folder: Path) -> None:
    """Put saved parameters into a model of the same method, parameters and backbone.

    Raises:
        AdapterError: names or shapes differ; the message shows the first of each kind.
    """
    from safetensors.torch import load_file

    state, own = load_file(folder / WEIGHTS), model.state()
    differences = {
        "the file lacks": [name for name in own if name not in state],
        "the model lacks": [name for name in state if name not in own],
        "of another shape": [name for name in own if name in state and own[name].shape != state[name].shape],
    }
    if any(differences.values()):
        shown = "; ".join(f"{what} {len(names)}, first {names[0]}" for what, names in differences.items() if names)
        raise AdapterError(
            f"{folder / WEIGHTS} does not fit this model: {shown}. "
            f"Build it with the method, parameters, backbone and image size in {folder / CARD}."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def load(folder: str | Path, *, checkpoint: str | Path | None = None) -> Model:
    """The trained model of a cell or an exported adapter, ready to predict.

    Args:
        folder: a done cell's, or what ``python -m methods export`` made.
        checkpoint: the backbone's weights, where they lie elsewhere than the adapter says: a name or a path.

    Raises:
        FileNotFoundError: ``folder`` holds no adapter.
        AdapterError: the backbone found is not the one it was trained on.
    """
    from methods.compose import create

    folder = Path(folder)
    card = read_card(folder)
    context = context_of(card, checkpoint)
    method = create(card["method"]["name"], card["method"]["parameters"])
    if method.on_backbone:
        check_backbone(folder, card, context)
    else:
        context = replace(context, checkpoint="none")  # all there is to load lies in the folder
    model = method.build(context)
    restore(model, folder)
    model.image_size, model.precision = context.image_size, card.get("precision", model.precision)
    return model.eval()


def read_card(folder: Path) -> dict[str, Any]:
    """What lies beside the weights in a cell's or an exported folder.

    Raises:
        FileNotFoundError: it is not there.
    """
    if not (folder / CARD).is_file():
        raise FileNotFoundError(f"{folder} holds no {CARD}; a finished cell's folder does: results/cells/<id>")
    return json.loads((folder / CARD).read_text())


def context_of(card: dict[str, Any], checkpoint: str | Path | None = None) -> Context:
    """What an adapter's model is built for; ``checkpoint`` in place of its own."""
    context = Context(**card["context"])
    return context if checkpoint is None else replace(context, checkpoint=str(checkpoint))


def check_backbone(folder: Path, card: dict[str, Any], context: Context) -> None:
    """Refuse another backbone than the one an adapter was trained on.

    Raises:
        AdapterError: the message has names and digests of both.
    """
    from methods.sam.checkpoints import CheckpointError, looks_like, resolve

    before, wanted = Context(**card["context"]), card["backbone_digest"]
    begins = f"{folder} was trained on {_described(before.backbone, Path(before.checkpoint).name, wanted)}"
    remedy = "Where that one lies: methods.load(DIR, checkpoint=PATH), or --checkpoint PATH of a command"
    try:
        found = resolve(context.backbone, context.checkpoint)
    except CheckpointError as error:
        raise AdapterError(f"{begins}, but {str(error).partition('. ')[0]}. {remedy}") from None
    digest = found.digest()
    if digest != wanted:
        own = None if found.random or found.official else looks_like(found.load())
        raise AdapterError(f"{begins}, but here is {_described(own or context.backbone, found.name, digest)}. {remedy}")


def _described(backbone: str, checkpoint: str, digest: str) -> str:
    weights = "random weights" if digest == "random" else f"{checkpoint}, digest {digest[:12]}"
    return f"{backbone} ({weights})"
