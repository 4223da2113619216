"""Stock transformers models, extended through their own doors.

family      facts and functions of each supported family
rows        prompts and completions laid out as a padded batch
forward     rows -> log-probability of every completion token (the plain pass)
attention   one attention call a layer in packed vision towers
load        a checkpoint -> model and processor (``foveal.fast_model`` puts the functions together)
decoder     the decoder's parts by name, and one token a row through them
fused_decoder  the same in nine launches a layer
packed_lora the adapter's 16-bit copy for it
prefill     whole rows, their keys and values into a paged cache
"""
