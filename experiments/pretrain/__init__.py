"""How were the demo models made?"""
