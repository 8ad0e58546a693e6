"""A model that is never in memory whole: its blocks' weights are fetched when they run, and dropped after."""
