"""Streaming scorers: pictures in, batch by batch; estimates out. One family per file."""
