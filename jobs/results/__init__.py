"""Results as text: JSON Lines, CSV, a table, OpenAI's batch output.

In: rows of the ledger. Out: lines. Imports: jobs.store.records, jobs.wording.
"""
