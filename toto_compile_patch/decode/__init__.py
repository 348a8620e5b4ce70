"""The arithmetic of a Toto forecast, without the waste: the context once, the samples many.

Takes a ``TotoBackbone`` and tensors, and knows nothing of patches, environment or command line.
Start with ``generation``, which computes the context, then generates patch after patch;
``forecast`` wraps it: weights, runtime, beginning again.
"""
