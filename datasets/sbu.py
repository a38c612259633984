"""SBU shadow: photographs and the shadows in them.

Vicente et al., "Large-scale training of shadow detectors with noisily-annotated shadow examples" (ECCV
2016). Its labels for training were recovered by a model and are noisy, those for testing are not. The
later re-annotation, SBU-Refine, is another benchmark. The paper holds out a tenth of the training images
for validation; which ones is published only in the authors' own zip.
"""

from __future__ import annotations

from datasets.base import register
from datasets.files import Archive, FileDataset
from datasets.layout import Layout, authors_lists
from datasets.parts import Folders
from datasets.splitting import hold_out


@register("sbu")
class Sbu(FileDataset):
    """Shadows, binary."""

    title = "SBU"
    split_seed = 2016
    regime = {"epochs": 10, "loss": "balanced_bce", "validation_metric": "ber_image"}
    # The paper's rows are means over images, the literature on shadows pools the pixels of the set.
    metrics = ("ber_image", "ber_pooled")

    layouts = (
        authors_lists(test="test.csv"),
        Layout(
            "the original archive",
            {
                # It counts 4089 files where the paper counts 4085 pairs.
                "train": (
                    Folders(
                        ("SBUTrain4KRecoveredSmall/ShadowImages",),
                        ("SBUTrain4KRecoveredSmall/ShadowMasks",),
                        unpaired=4,
                    ),
                ),
                "test": (Folders(("SBU-Test/ShadowImages",), ("SBU-Test/ShadowMasks",)),),
            },
            arrange=hold_out(0.1),
        ),
    )
    aliases = ("SBU-shadow",)
    # Of 4085 pairs for training, a tenth is held out.
    published = {"train": 3677, "validation": 408, "test": 638}
    archives = (Archive("https://automl-mm-bench.s3.amazonaws.com/semantic_segmentation/SBU-shadow.zip"),)
    steps = (
        "https://www3.cs.stonybrook.edu/~minhhoai/projects/shadow.html (SBU-shadow.zip with the folders "
        "SBUTrain4KRecoveredSmall and SBU-Test)"
    )
    terms = "for research only; cite Vicente et al. 2016"
