"""Recipes: a whole run in one YAML file, with ``key=value`` overrides from the command line.

    model:                                       # arguments of FastVisionModel.from_pretrained
      model_name: Qwen/Qwen2.5-VL-7B-Instruct
      load_in_4bit: true
    lora: {r: 16, lora_alpha: 32}                # of get_peft_model; false trains what is loaded
    data: {train: geometry.parquet, eval: held_out.parquet}
    rewards:                                     # names, or names with weights
      math_answer: 0.9
      my_rewards.py:brevity: 0.1
    train: {output_dir: runs/geometry, ...}      # fields of GRPOConfig

    recipe = load_recipe("geometry.yaml", ["train.learning_rate=1e-5"])
    trainer = run_recipe(recipe)

Data, checkpoints and reward files that a recipe names by relative paths lie beside the recipe;
those of overrides, and ``train.output_dir``, start from the current folder. ``data`` may also
name a procedural task: ``train: {task: shapes, n: 512}``, without ``n`` one without an end; or a
mixture: ``train: [{data: geometry.parquet, weight: 2}, {task: charts, difficulty: 2}]``.

Supervised training has recipes of the same sections: ``data`` may hold lists, ``rewards`` may be
missing, and ``train`` has the fields of SFTConfig.

    file    the YAML of a recipe, overrides, paths
    keys    which keys there are, and what each takes
    run     ``Recipe``; check what it names; train
    sft     ``SFTRecipe``: the same for ``foveal sft``
"""

from foveal.recipe.run import (
    CheckedRecipe,
    DataSection,
    Recipe,
    check_recipe,
    load_recipe,
    run_recipe,
)
from foveal.recipe.sft import (
    CheckedSFTRecipe,
    SFTRecipe,
    check_sft_recipe,
    load_sft_recipe,
    run_sft_recipe,
)

__all__ = [
    "load_recipe",
    "check_recipe",
    "run_recipe",
    "Recipe",
    "DataSection",
    "CheckedRecipe",
    "load_sft_recipe",
    "check_sft_recipe",
    "run_sft_recipe",
    "SFTRecipe",
    "CheckedSFTRecipe",
]
