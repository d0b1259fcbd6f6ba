"""Where `celery -A worker.celery_app` finds the app, which worker/queue builds."""

from worker.queue.celery_app import __getattr__ as __getattr__  # noqa: PLC0414
