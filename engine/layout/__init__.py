"""What a model consists of, from its configuration: blocks, tensors, ties.

In: a transformers configuration. Out: names, shapes and dtypes by block, and
what a family of models does differently. Imports: checkpoint, int8, quiet,
interface.
"""
