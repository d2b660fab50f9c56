"""Re-id objectives: what trains the features, picked by MODEL.OBJECTIVE.NAME. Importing it registers them."""
