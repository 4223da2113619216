"""GSPO with a LoRA adapter on a 4-bit vision-language model: a whole run in Python.

    python examples/seed_recipe.py [MODEL] [DATASET] [--max-steps N] [--output-dir FOLDER]

MODEL is a hub id or a folder. DATASET is a file or folder with images, problem and answer.
"""

import argparse
import os

os.environ["UNSLOTH_VLLM_STANDBY"] = "1"  # accepted: rollout and training share memory anyway

from foveal import FastVisionModel, GRPOConfig, GRPOTrainer

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", nargs="?", default="Qwen/Qwen2.5-VL-7B-Instruct")
parser.add_argument("dataset", nargs="?", default="nlvr/train.parquet")
parser.add_argument("--output-dir", default="runs/seed")
parser.add_argument("--max-steps", type=int, default=-1, help="-1 is one pass over the data")
parser.add_argument("--max-completion-length", type=int, default=1024)
asked = parser.parse_args()


def close_and_brief(completions, answer, **kwargs):
    """Half a point where the truth is named at all, and a little less for every word."""
    texts = [completion[0]["content"] for completion in completions]
    named = [truth in text for text, truth in zip(texts, answer, strict=True)]
    return [0.5 * n - 0.001 * len(text.split()) for n, text in zip(named, texts, strict=True)]


# fmt: off
model, processor = FastVisionModel.from_pretrained(
    model_name=asked.model, max_seq_length=4096, load_in_4bit=True, fast_inference=False,
    gpu_memory_utilization=0.8,
)
model = FastVisionModel.get_peft_model(
    model, finetune_vision_layers=False, finetune_language_layers=True,
    finetune_attention_modules=True, finetune_mlp_modules=True, r=16, lora_alpha=16,
    use_gradient_checkpointing="unsloth", random_state=3407,
)
args = GRPOConfig(
    output_dir=asked.output_dir, max_steps=asked.max_steps, num_train_epochs=1, seed=3407,
    system_prompt="Think first. Then give the answer between <answer> and </answer>.",
    importance_sampling_level="sequence", loss_type="dr_grpo", epsilon=3e-4, epsilon_high=4e-4,
    beta=0.0, temperature=1.0, num_generations=8, per_device_train_batch_size=8,
    gradient_accumulation_steps=4, max_prompt_length=1024,
    max_completion_length=asked.max_completion_length, learning_rate=5e-6, optim="adamw_8bit",
    weight_decay=0.1, warmup_steps=0.1, lr_scheduler_type="cosine", max_grad_norm=0.1,
    logging_steps=1, save_steps=60, log_completions=True, report_to="none",
)
trainer = GRPOTrainer(
    model=model, processing_class=processor, reward_funcs=["exact_answer", close_and_brief],
    train_dataset=asked.dataset, args=args,
)
# fmt: on
trainer.train()
model.save_pretrained(f"{asked.output_dir}/adapter")
