"""Re-id objectives, the methods that train the features, selected by MODEL.OBJECTIVE.NAME."""
