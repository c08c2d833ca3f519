"""The suite: DyME against its baselines and other switching rules at equal budgets, with seeds and intervals."""
