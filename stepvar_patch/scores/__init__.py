"""What makes a token worth computing: one score per file, ``(rows, N)``, higher = keep."""
