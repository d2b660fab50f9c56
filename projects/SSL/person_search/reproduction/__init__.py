"""Tables, figures and parameter sweeps of the paper: plans trainings, runs them, and formats the results.

May import all folders but `search` and `synthetic`. Imported by the programs only.
"""
