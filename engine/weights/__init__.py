"""Weights in memory: loaded once, or streamed in every pass.

In: an open store and a tier for each block. Out: tensors on the device, and
passes that fetch streamed blocks in time. Imports: plan and what is below it.
"""
