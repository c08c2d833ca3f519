"""What a run owns and what it did: its folder, its settings, its code and its data."""
