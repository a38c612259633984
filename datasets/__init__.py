"""What the methods are trained and scored on: real datasets in their published layouts, and generated shapes.

One file a dataset; :mod:`datasets.base` holds the contract. The name is also that of Hugging Face's
package: run from the project's folder, so that this one comes first.
"""

from bench.squash import squash_image, squash_map, squash_mask
from datasets.base import (
    IGNORE,
    Dataset,
    DatasetBroken,
    DatasetMissing,
    Sample,
    Split,
    evidence,
    load,
    manifest,
    register,
    registry,
)
from datasets.few_shot import few_shot

__all__ = [
    "IGNORE",
    "Dataset",
    "DatasetBroken",
    "DatasetMissing",
    "Sample",
    "Split",
    "evidence",
    "few_shot",
    "load",
    "manifest",
    "register",
    "registry",
    "squash_image",
    "squash_map",
    "squash_mask",
]
