"""What is trained: fine-tuning methods as interchangeable plugins, one file each.

``create("lora", rank=6)`` gives a method, ``.build(context)`` a model; ``load(folder)`` reads a trained
adapter. ``"conv_lora+vpt"`` composes methods that fill different slots, in any order, with parameters prefixed by the
name they belong to.
"""

from methods.base import Context, Embedding, Method, Model, Output, SamMethod, register, registry
from methods.compose import create
from methods.delta import load, restore, save

__all__ = [
    "Context",
    "Embedding",
    "Method",
    "Model",
    "Output",
    "SamMethod",
    "create",
    "load",
    "register",
    "registry",
    "restore",
    "save",
]
