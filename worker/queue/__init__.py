"""Celery and Redis: messages in, shard ids out; the processes of a worker.

The only room of worker/ that imports celery and kombu.
"""
