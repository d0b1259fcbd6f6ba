"""Where every block goes and how many rows run together.

In: bytes, counts and rates of a model and a machine. Out: a Plan, or the
smallest budgets that would do. Imports: store and what is below it.
"""
