"""The torch modules of methods, each in the file of its method's name.

They are imported when a method is attached, so that a method can be named, checked and described
without torch.
"""
