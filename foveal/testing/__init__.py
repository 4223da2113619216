"""Tiny random models of each family with their processors: no download, milliseconds to make.

    from foveal.testing import tiny
    model, processor = tiny("qwen2_5_vl")          # float32, on the CPU

They have the real architectures (stock transformers classes), only small: every code path that
a 7B model takes, a tiny one takes too. Useful for testing reward functions and recipes as well.
"""

from foveal.testing.tiny_models import TINY_FAMILIES, save_tiny, tiny

__all__ = ["tiny", "save_tiny", "TINY_FAMILIES"]
