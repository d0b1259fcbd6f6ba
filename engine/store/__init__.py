"""The int8 copy of a model on disk: written once, read at every load.

In: a checkpoint. Out: a folder with one file per block and a manifest of
checksums. Imports: layout and what is below it.
"""
