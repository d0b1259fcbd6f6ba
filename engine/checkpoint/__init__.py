"""A model as its authors published it.

In: a ModelSource (hub id or folder). Out: a checked folder with its
configuration, tokenizer and tensors by name. Imports: interface, quiet.
"""
