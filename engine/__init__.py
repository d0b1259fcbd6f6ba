"""The engine: prompts in, completions out, with a model split over GPU, RAM and disk.

It knows tensors, tokenizers and checkpoints, and nothing of jobs, Redis or
databases. Each folder is a room; imports go down only, in this order: load,
decode, model, weights, plan, store, layout, then checkpoint, int8, device and
null side by side, then interface, cache and quiet. load.py is the entrance.
"""
