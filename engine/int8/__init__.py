"""One weight format: int8 with a float32 scale for each row of a matrix.

In: float weights, or activations. Out: int8 weights with scales, or products
with them. Imports: quiet.
"""
