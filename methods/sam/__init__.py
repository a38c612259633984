"""Segment Anything made trainable: own encoder blocks with slots, segment_anything's decoder and weights."""

from methods.sam.sizes import SIZES, Size, size_of

__all__ = ["SIZES", "Size", "size_of"]
