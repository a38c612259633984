"""What a training leaves behind: the trained parameters alone, and what is needed to build them in again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.base import Context, Method, Model

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


def load(folder: str | Path) -> Model:
    """The trained model of a cell or an exported adapter, ready to predict.

    Raises:
        FileNotFoundError: ``folder`` holds no adapter.
        AdapterError: the backbone found under the recorded name is not the one it was trained on.
    """
    from methods.compose import create
    from methods.sam.checkpoints import resolve

    folder = Path(folder)
    if not (folder / CARD).is_file():
        raise FileNotFoundError(f"{folder} holds no {CARD}; a finished cell's folder does: results/cells/<id>")
    card = json.loads((folder / CARD).read_text())
    method: Method = create(card["method"]["name"], card["method"]["parameters"])
    context = Context(**card["context"])
    found = resolve(context.backbone, context.checkpoint).digest()
    if found != card["backbone_digest"]:
        raise AdapterError(
            f"{folder} was trained on {context.backbone} with digest {card['backbone_digest'][:12]}, "
            f"but {context.checkpoint!r} is now {found[:12]}"
        )
    model = method.build(context)
    restore(model, folder)
    return model.eval()
