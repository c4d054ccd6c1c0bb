"""What images can be asked for: the classes of labels, and whatever else stands in a file beside this one."""
