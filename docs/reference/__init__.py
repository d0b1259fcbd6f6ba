"""Makes docs/reference.md: its tables and samples come from the code.

In: jobs and cli, and the page's prose. Out: the page. A test compares the two.
"""
