"""The arithmetic of a Toto forecast, without the waste: the context once, the samples many.

Takes a ``TotoBackbone`` and tensors, and knows nothing of patches, environment or command line.
Read ``forecast`` first: it follows a series through ``context``, step and ``sampling``.
"""
