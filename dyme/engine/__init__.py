"""The model under DeepSpeed: forward and backward, collectives, the optimizer step and the copy that rollouts use."""
