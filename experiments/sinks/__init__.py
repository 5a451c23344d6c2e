"""Content or sink: the edits that tell what a group of tokens is for, the rules that read them, and models of known truth to test these."""
