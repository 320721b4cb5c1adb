"""Plans: the most accurate samples for the time there is."""
