"""What do figures share?"""
