"""The paper's tables, figures and sensitivity: plans trainings, runs them, and lays out what came of them.

May import all folders but `search` and `synthetic`. The programs alone import it.
"""
