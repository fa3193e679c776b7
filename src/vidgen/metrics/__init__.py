"""Metrics: features of videos, distances between sets of them, and what may be compared with what."""
