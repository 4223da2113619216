"""Stock transformers models, extended through their own doors.

family      facts and functions of each supported family
rows        prompts and completions laid out as a padded batch
forward     rows -> log-probability of every completion token (the plain pass)
load        a checkpoint -> model and processor (``foveal.fast_model`` puts the functions together)
"""
