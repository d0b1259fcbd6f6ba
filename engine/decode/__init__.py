"""Continuous batching: from a feed of requests to windows of results.

In: a loaded model and a feed. Out: finished rows, window by window. Imports:
model and what is below it.
"""
