"""A shard from claim to finish: leases, feeds of prompts, records of results.

Imports jobs/ and engine.interface; neither Celery nor torch.
"""
