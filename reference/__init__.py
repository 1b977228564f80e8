"""What is right, in NumPy: the oracle that the serving code is tested against.

Nothing here imports torch or SGLang. Every module is small, plain and exact before it is fast.
"""
