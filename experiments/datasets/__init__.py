"""Where do images, labels, masks and correspondences come from?"""
