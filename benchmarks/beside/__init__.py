"""The benchmark: this library beside others, each in a process of its own, the rounds interleaved.

`running` measures, `results` keeps and compares, `report` writes the tables.
"""
