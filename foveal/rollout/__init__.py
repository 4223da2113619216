"""Where completions come from. The trainer sees one method, ``RolloutBackend.generate``.

TransformersBackend   transformers' own generate: slow, stock, the reference in tests
ScriptedBackend       completions written down beforehand: tests of everything behind it
"""

from foveal.rollout.backend import RolloutBackend
from foveal.rollout.scripted import ScriptedBackend
from foveal.rollout.transformers_backend import TransformersBackend

__all__ = ["RolloutBackend", "ScriptedBackend", "TransformersBackend"]
