"""How do results become a page and tables?"""
