"""A transformers model whose tensors are those of a store.

In: an open store and a plan, or a checkpoint. Out: a module that computes, its
tokenizer and its passes. Imports: weights and what is below it.
"""
