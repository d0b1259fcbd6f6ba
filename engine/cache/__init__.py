"""Keys and values of the tokens that rows have had so far.

In: the states that a model computes. Out: the same states when it attends to
them, as float or int8, within a budget of bytes. Imports nothing of the engine.
"""
