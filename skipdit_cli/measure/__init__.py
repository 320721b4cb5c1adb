"""What is measured: multiply-adds, time, quality, and the report of a bench."""
