"""Importing the package is quick, loads nothing heavy and changes nothing of others."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = {"torch", "transformers", "peft", "datasets", "PIL", "numpy", "rich", "trl", "accelerate"}


def run(code: str) -> str:
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_importing_the_package_is_quick_and_loads_no_library():
    found = json.loads(
        run(
            "import time, sys, json\n"
            "before, began = set(sys.modules), time.process_time()\n"
            "import foveal\n"
            "seconds = time.process_time() - began\n"
            "print(json.dumps([seconds, sorted(set(sys.modules) - before)]))"
        )
    )
    seconds, loaded = found
    assert seconds < 0.3
    assert not HEAVY & {name.partition(".")[0] for name in loaded}


SNAPSHOT = """
import importlib, json, sys, inspect
import peft, torch, transformers
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen3_vl import modeling_qwen3_vl
from transformers.modeling_layers import GradientCheckpointingLayer

def classes():
    modules = (modeling_gemma3, modeling_qwen2_5_vl, modeling_qwen3_vl)
    for module in modules:
        yield from (c for c in vars(module).values() if inspect.isclass(c))
    yield from (transformers.Trainer, transformers.PreTrainedModel, transformers.GenerationMixin)
    yield from (transformers.TrainingArguments, GradientCheckpointingLayer)
    yield from (peft.PeftModel, peft.tuners.lora.LoraLayer, torch.nn.Module, torch.nn.Linear)

def contents():
    # Objects are kept, not their addresses: a new one cannot take the place of an old one.
    return {f"{c.__module__}.{c.__name__}": dict(vars(c)) for c in classes()}

hidden = ("_abc_impl", "__annotations__", "__annotate_func__", "__annotate__",
          "__annotations_cache__", "__dict__", "__weakref__", "__static_attributes__")
before, attentions = contents(), dict(transformers.AttentionInterface()._global_mapping)
import foveal
for name in foveal.__all__:
    getattr(foveal, name)
for name in ("train.trainer", "rollout", "rl", "rewards", "tasks", "data", "testing", "evaluate"):
    importlib.import_module("foveal." + name)
after = contents()
changed = [
    f"{owner}.{name}"
    for owner in before.keys() | after.keys()
    for name in before[owner].keys() | after[owner].keys()
    if name not in hidden and before[owner].get(name) is not after[owner].get(name)
]
if attentions != dict(transformers.AttentionInterface()._global_mapping):
    changed.append("AttentionInterface")
print(json.dumps([len(before), changed]))
"""


def test_importing_everything_leaves_the_classes_of_transformers_untouched():
    count, changed = json.loads(run(SNAPSHOT).splitlines()[-1])
    assert count > 50
    assert changed == []


def test_no_public_name_is_hidden_by_a_submodule_of_the_same_name():
    """Importing ``foveal.x`` sets the attribute ``x`` of the package, and would shadow a name."""
    import pkgutil

    import foveal

    submodules = {module.name for module in pkgutil.iter_modules(foveal.__path__)}
    assert not submodules & set(foveal.__all__)
