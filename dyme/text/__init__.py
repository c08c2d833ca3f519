"""How numbers and words are read, for rewards and supervision alike."""
