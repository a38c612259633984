"""From a name and parameters to a method, and several methods put into one SAM.

A composition has its parts in alphabetical order, however it was written: no other order stays as it is when plugins
are added. No two of its parts may fill one slot of the SAM, where the order would change what is computed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from methods.base import Context, Method, SamMethod, registry

if TYPE_CHECKING:
    from methods.sam.model import SamSegmenter


class ParameterError(ValueError):
    """A parameter that a method does not take, or a value it refuses; the message lists what it takes."""


class SlotTaken(ParameterError):
    """Two methods that want the same slot of one SAM; the message names them and the slot."""


def create(name: str, parameters: Mapping[str, Any] | None = None) -> Method:
    """The method ``name`` with ``parameters``; what is not given keeps the paper's value.

    ``"a+b"`` puts both into one SAM and is the same as ``"b+a"``; parameters of ``b`` are written ``b.parameter``,
    those without a prefix belong to the method that is written first.

    Raises:
        bench.registry.UnknownName: no such method.
        ParameterError: an unknown parameter or a value out of range.
        SlotTaken: two methods that cannot be combined.
    """
    names = name.split("+")
    if len(names) == 1:
        return _create_one(name, dict(parameters or {}))
    parts = tuple(_create_one(n, own) for n, own in sorted(_distribute(names, parameters or {}).items()))
    for part in parts:
        if not isinstance(part, SamMethod):
            raise ParameterError(f"{part.name!r} is a complete model and adapts no SAM: it cannot be part of {name!r}")
    composition = Composition(parts=parts)
    _try(composition)
    return composition


@cache
def _try(composition: Composition) -> None:
    """Refuse a composition before anything is planned with it rather than when its first cell starts."""
    try:
        with torch.device("meta"):
            composition.build(Context(checkpoint="none"))
    except Exception as error:
        # Whatever else a part may say of this backbone, it says of the right one when the model is built.
        if isinstance(error, SlotTaken):
            raise


def _distribute(names: list[str], parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    shares: dict[str, dict[str, Any]] = {n: {} for n in names}
    if len(shares) != len(names):
        raise ParameterError(f"a composition names each method once, not {'+'.join(names)!r}")
    for label, value in parameters.items():
        owner, dot, parameter = label.rpartition(".")
        if dot and owner not in shares:
            raise ParameterError(f"parameter {label!r}: {owner!r} is no part of {'+'.join(names)!r}")
        share = shares[owner or names[0]]
        if parameter in share:
            raise ParameterError(f"parameter {label!r} is given twice, with and without {owner or names[0]!r}")
        share[parameter] = value
    return shares


def _create_one(name: str, parameters: dict[str, Any]) -> Method:
    cls = registry[name]
    # TOML and the command line know lists only; fields of immutable values are tuples.
    parameters = {k: tuple(v) if isinstance(v, list) else v for k, v in parameters.items()}
    try:
        return cls(**parameters)
    except ValidationError as error:
        raise ParameterError(describe(error, f"method {name!r}", cls.model_fields)) from None


def describe(error: ValidationError, owner: str, fields: Mapping[str, Any]) -> str:
    """A validation error in one line an item: which parameter, which value, what was allowed."""
    lines = []
    for item in error.errors():
        where = ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(where, fields, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            lines.append(f"{owner} takes no parameter {where!r}.{hint} It takes: {', '.join(fields) or 'none'}")
        elif not where:  # a rule over several parameters
            lines.append(f"{owner}: {item['ctx']['error']}")
        else:
            lines.append(f"{owner}, parameter {where} = {item['input']!r}: {item['msg']}")
    return "\n".join(lines)


class Composition(SamMethod):
    """Several methods in one SAM, applied in the order of ``parts``."""

    parts: tuple[SamMethod, ...]

    @cached_property
    def name(self) -> str:  # type: ignore[override]
        """The parts' names joined by "+"."""
        return "+".join(part.name for part in self.parts)

    @property
    def title(self) -> str:  # type: ignore[override]
        """The parts' titles joined by "+"."""
        return "+".join(part.title for part in self.parts)

    @property
    def starts_as_sam(self) -> bool:  # type: ignore[override]
        """All parts do."""
        return all(part.starts_as_sam for part in self.parts)

    @property
    def several_classes(self) -> bool:  # type: ignore[override]
        """All parts can."""
        return all(part.several_classes for part in self.parts)

    @property
    def no_gradient(self) -> tuple[str, ...]:  # type: ignore[override]
        """The exceptions of all parts."""
        return tuple(pattern for part in self.parts for pattern in part.no_gradient)

    def caveats(self, context: Context) -> tuple[str, ...]:
        return tuple(dict.fromkeys(caveat for part in self.parts for caveat in part.caveats(context)))

    def added_parameters(self, context: Context) -> int | None:
        own = [part.added_parameters(context) for part in self.parts]
        return None if None in own else sum(own)

    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        """See the base class.

        Raises:
            SlotTaken: a part filled a slot that an earlier one had filled; what they did is observed, not declared.
        """
        owners: dict[str, str] = {}
        for part in self.parts:
            before = _contents(sam)
            part.adapt(sam, context)
            for slot in _filled(before, _contents(sam)):
                for taken, owner in owners.items():
                    if slot == taken or slot.startswith(f"{taken}.") or taken.startswith(f"{slot}."):
                        raise SlotTaken(
                            f"{self.name!r}: {owner!r} and {part.name!r} both want the slot {taken}. "
                            "What can be combined fills different slots; all methods: python -m methods"
                        )
                owners[slot] = part.name


def _contents(sam: SamSegmenter) -> dict[str, Any]:
    """What stands where a method could put something else: modules, parameters and plain attributes, by path."""
    found: dict[str, Any] = {}
    for path, module in sam.named_modules():
        plain = {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "training"}
        held = plain | dict(module.named_children()) | dict(module.named_parameters(recurse=False))
        found |= {f"{path}.{name}".removeprefix("."): value for name, value in held.items()}
    return found


def _filled(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The paths at which something else stands now, without what lies inside of another of them."""
    changed = {path for path, value in after.items() if path not in before or before[path] is not value}
    return [path for path in after if path in changed and not changed.intersection(_above(path))]


def _above(path: str) -> list[str]:
    """The paths that hold this one."""
    names = path.split(".")
    return [".".join(names[:count]) for count in range(1, len(names))]


def parameters_of(method: Method, *, changed_only: bool = False) -> dict[str, Any]:
    """A method's parameters as plain values, parts prefixed; ``changed_only`` leaves the defaults out."""
    if not isinstance(method, Composition):
        return method.model_dump(mode="json", exclude_defaults=changed_only)
    first, *rest = method.parts
    own = parameters_of(first, changed_only=changed_only)
    return own | {
        f"{part.name}.{k}": v for part in rest for k, v in parameters_of(part, changed_only=changed_only).items()
    }


def version_of(method: Method) -> int | list[int]:
    """The plugin's version, for a composition the list of its parts'."""
    return [part.version for part in method.parts] if isinstance(method, Composition) else method.version
