"""The search for plans: what is tried, how it is measured, and where the search goes next."""
