"""Programs that hold a run against a bad network and against kills."""
