"""Where completions come from. The trainer sees one method, ``RolloutBackend.generate``.

Engine                our own: the trainer's weights, each prompt once, CUDA graphs
TransformersBackend   transformers' own generate: slow, stock, the reference in tests
ScriptedBackend       completions written down beforehand: tests of everything behind it

``stopping`` says for all of them where a completion ends, and what its text is.
"""

from foveal.rollout.backend import OnTokens, RolloutBackend
from foveal.rollout.engine import Engine, engine_of
from foveal.rollout.scripted import ScriptedBackend
from foveal.rollout.stopping import StopRule, TextStream
from foveal.rollout.transformers_backend import TransformersBackend

__all__ = [
    "Engine",
    "OnTokens",
    "RolloutBackend",
    "ScriptedBackend",
    "StopRule",
    "TextStream",
    "TransformersBackend",
    "engine_of",
]
