"""What the commands do: one function each, which takes the parsed options and puts the pieces together.

They know no objective, tower or format by name. Heavy imports stand inside, so that ``crossmodal --help`` is quick.
"""
