"""Prompt files: from bytes to checked requests, or to the errors of every line.

In: a path or a stream in one of the formats. Out: PromptRequests with resolved
parameters. Imports: jobs.errors and jobs.wording.
"""
