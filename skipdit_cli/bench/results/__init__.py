"""The results of a bench for readers: the table, the verdict, the plot, the page."""
