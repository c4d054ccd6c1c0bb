"""Pictures of images, of the processes that make them and of their training; and the report that explains them.

Everything takes arrays and plain values, and nothing here knows the rest of the package.
"""
