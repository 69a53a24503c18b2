"""Which tokens every scale keeps, as a strip and a page."""
