"""From prompts to a better policy: configuration, trainer, the plain training pass, checkpoints."""

from foveal.train.config import GRPOConfig
from foveal.train.trainer import GRPOTrainer

__all__ = ["GRPOConfig", "GRPOTrainer"]
