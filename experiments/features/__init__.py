"""What does a model under a condition make of images?"""
