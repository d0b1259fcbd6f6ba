"""The models of a worker: which is loaded, how one is planned and prepared.

Imports jobs/ and the engine, whose libraries load only when they are needed.
"""
