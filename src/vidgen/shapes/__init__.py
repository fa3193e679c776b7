"""The toy world: procedural data, its classifier, and small models of it that come with the package.

Nothing else in the library imports it. It comes in through entry points, as any other package would.
"""
