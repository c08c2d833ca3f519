"""From completions and demonstrations to weighted, packed micro-batches."""
