"""The paper's tables, figures and sensitivity: plans trainings, runs them, and lays out what came of them."""
