"""The published strategies, each a package of its own; none imports another."""
