"""From prompts to a better policy: configurations, trainers, training passes, checkpoints."""

from foveal.train.config import GRPOConfig
from foveal.train.sft import SFTTrainer
from foveal.train.sft_config import SFTConfig
from foveal.train.trainer import GRPOTrainer

__all__ = ["GRPOConfig", "GRPOTrainer", "SFTConfig", "SFTTrainer"]
